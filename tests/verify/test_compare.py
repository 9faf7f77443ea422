from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewriter.errors import InputError
from rewriter.program.program import Program
from rewriter.verify import floors
from rewriter.verify.compare import validate

X = [("x", ("batch", "n", 4), "float32")]
Y = [("y", ("batch", "n", 4), "float32")]
APPROXIMATE = {
    "rewriter.sites": json.dumps({"attention.0": {"form": "window:window=4", "fidelity": "training-free"}})
}
EXACT = {"rewriter.sites": json.dumps({"attention.0": {"form": "softmax", "fidelity": "exact"}})}


@pytest.fixture(autouse=True)
def _weightless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A numpy function has no weights to perturb; its inputs are perturbed all the same."""
    monkeypatch.setattr(floors, "perturbed_program", lambda program, seed: program)


def softmax(x: np.ndarray) -> tuple[np.ndarray]:
    e = np.exp(x - x.max(-1, keepdims=True))
    return (e / e.sum(-1, keepdims=True),)


def reordered(x: np.ndarray) -> tuple[np.ndarray]:
    return (np.flip(softmax(np.flip(x, -1))[0], -1),)


def off_by(amount: float) -> Callable[[np.ndarray], tuple[np.ndarray]]:
    return lambda x: (softmax(x)[0] + np.float32(amount),)


def test_another_order_of_sums_is_exact(numpy_program: Any) -> None:
    report = validate(numpy_program(softmax, X, Y), numpy_program(reordered, X, Y, written=EXACT))
    assert report.ok and report.exact and report.judged == "noise floor"
    assert report.sites[0].form == "softmax"
    (output,) = report.summary["random"]
    assert output.tolerance is not None and output.tolerance < 1e-4


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (off_by(1e-3), "over the tolerance"),
        (lambda x: (np.where(x > 1.5, np.nan, softmax(x)[0]),), "NaN or inf in one model only"),
        (lambda x: (softmax(x)[0][..., :3],), "has shape"),
        (lambda x: softmax(x[:, :3]) if x.shape[1] < 3 else 1 / 0, "cannot be run"),
    ],
)
def test_finds_what_is_wrong(numpy_program: Any, wrong: Callable[..., Any], complaint: str) -> None:
    def run(x: np.ndarray) -> Any:
        try:
            return wrong(x)
        except ZeroDivisionError as error:
            raise RuntimeError("division by zero") from error

    report = validate(numpy_program(softmax, X, Y), numpy_program(run, X, Y))
    assert not report.ok
    assert complaint in report.verdict


def test_integer_outputs_must_be_equal(numpy_program: Any) -> None:
    outputs = [("top", ("batch", "n"), "int64")]
    original = numpy_program(lambda x: (x.argmax(-1),), X, outputs)
    assert validate(original, original).ok
    report = validate(original, numpy_program(lambda x: (np.abs(x).argmax(-1),), X, outputs))
    assert not report.ok and "elements differ" in report.verdict


def test_a_budget_decides_and_is_judged_on_the_data(numpy_program: Any) -> None:
    original = numpy_program(softmax, X, Y)
    rewritten = numpy_program(lambda x: (softmax(x)[0] if x.max() < 0.1 else x,), X, Y, written=APPROXIMATE)
    easy = [{"x": np.zeros((1, 3, 4), np.float32)}]
    assert not validate(original, rewritten, budget="cos>=0.9").ok
    report = validate(original, rewritten, data=easy, budget=["cos>=0.9", "kl<=1e-6"])
    assert report.ok and "on data inputs" in report.verdict
    assert not validate(original, rewritten, data=easy * 2, budget="max_abs<=-0.0").exact


def test_approximate_without_a_budget_is_measured_not_judged(numpy_program: Any) -> None:
    report = validate(numpy_program(softmax, X, Y), numpy_program(off_by(0.3), X, Y, written=APPROXIMATE))
    assert report.ok and report.judged == "nothing" and not report.exact
    assert report.summary["random"][0].distance.max_abs == pytest.approx(0.3, rel=1e-3)  # type: ignore[union-attr]


def test_generated_inputs_are_long_enough_for_a_window_to_show(numpy_program: Any) -> None:
    original = numpy_program(softmax, X, Y)
    record = {
        "attention.0": {"form": "window:window=400", "fidelity": "training-free"},
        "attention.1": {"form": "?"},
    }
    rewritten = numpy_program(
        lambda x: (softmax(x)[0] * (x.shape[1] <= 400),), X, Y, written={"rewriter.sites": json.dumps(record)}
    )
    assert validate(original, original, budget="max_abs<=0").ok
    assert not validate(original, rewritten, budget="max_abs<=0").ok


def test_inputs_and_outputs_match_by_name_then_by_position(numpy_program: Any) -> None:
    a, b = ("a", ("n", 4), "float32"), ("b", ("n", 4), "float32")
    p, q = ("p", ("n", 4), "float32"), ("q", ("n", 4), "float32")
    original = numpy_program(lambda x, y: (x - y, x), [a, b], [p, q])
    assert validate(original, numpy_program(lambda y, x: (x, x - y), [b, a], [q, p])).ok
    renamed = [("c", ("n", 4), "float32"), ("d", ("n", 4), "float32")]
    assert validate(original, numpy_program(lambda x, y: (x - y, x), renamed, [p, q])).ok
    assert not validate(original, numpy_program(lambda y, x: (x - y, x), renamed, [p, q])).ok


@pytest.mark.parametrize(
    ("inputs", "outputs", "complaint"),
    [
        (X * 2, Y, "different inputs: 1 \\(x\\) and 2"),
        (X, Y * 2, "different outputs"),
        ([("x", ("batch", "n", 4), "int64")], Y, "input 'x' is float32 in the original and int64"),
        ([("x", ("batch", "n", 5), "float32")], Y, "shape"),
        (X, [("y", ("n", 4), "float32")], "output 'y' has shape"),
    ],
)
def test_signatures_that_differ(numpy_program: Any, inputs: Any, outputs: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        validate(numpy_program(softmax, X, Y), numpy_program(softmax, inputs, outputs))


def test_another_precision_is_measured_and_noted(numpy_program: Any) -> None:
    def narrow(x: np.ndarray) -> tuple[np.ndarray, ...]:
        assert x.dtype == np.float16
        return (softmax(x.astype(np.float32))[0].astype(np.float16),)

    original = numpy_program(softmax, X, Y)
    half = [[(name, shape, "float16") for name, shape, _ in values] for values in (X, Y)]
    found = validate(original, numpy_program(narrow, *half), budget="cos>=0.999")
    assert found.ok
    assert [note.split(" in the")[0] for note in found.notes] == [
        "input 'x' is float32",
        "output 'y' is float32",
    ]
    assert not validate(original, numpy_program(narrow, *half)).ok


def test_sizes_that_the_original_refuses_are_skipped(numpy_program: Any) -> None:
    def seven_only(x: np.ndarray) -> tuple[np.ndarray]:
        if x.shape[1] != 7:
            raise RuntimeError("only seven")
        return softmax(x)

    report = validate(numpy_program(seven_only, X, Y), numpy_program(softmax, X, Y))
    assert report.ok
    assert {c.name.split("n=")[1] for c in report.cases} == {"7"}
    with pytest.raises(InputError, match="no generated input"):
        validate(numpy_program(lambda x: softmax(x[:, :, 99]), X, Y), numpy_program(softmax, X, Y))


def test_three_ways(numpy_program: Any) -> None:
    source, original = numpy_program(softmax, X, Y), numpy_program(off_by(0.25), X, Y)
    report = validate(original, original, source=source)
    assert report.ok
    assert [s.outputs["y"].max_abs for s in report.steps] == pytest.approx([0.25, 0.25], rel=1e-3)


def test_a_module_is_a_source(numpy_program: Any) -> None:
    torch = pytest.importorskip("torch")
    report = validate(numpy_program(softmax, X, Y), numpy_program(softmax, X, Y), source=torch.nn.Softmax(-1))
    assert report.steps[0].outputs["y"].max_abs < 1e-6


@pytest.mark.parametrize("kind", ["npz", "positional", "directory", "callable", "tuples"])
def test_data_of_every_kind(
    numpy_program: Any, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(1).standard_normal((1, 5, 4))
    data: Any = tmp_path / "one.npz"
    if kind == "positional":
        np.savez(data, x)
    elif kind == "callable":
        monkeypatch.chdir(tmp_path)
        Path("calibration.py").write_text(
            "import numpy as np\ndef inputs():\n    yield {'x': np.ones((1, 5, 4), 'float32')}\n"
        )
        data = "calibration:inputs"
    elif kind == "tuples":
        data = [(x,)]
    else:
        np.savez(data, x=x, labels=x)
        data = tmp_path if kind == "directory" else data
    report = validate(numpy_program(softmax, X, Y), numpy_program(softmax, X, Y), data=data)
    assert [c.group for c in report.cases].count("data") == 1


def _npz(tmp_path: Path, **arrays: np.ndarray) -> Path:
    np.savez(tmp_path / "d.npz", **arrays)  # type: ignore[arg-type]
    return tmp_path / "d.npz"


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda d: d / "none.npz", "no such file"),
        (lambda d: d, "holds no inputs"),
        (lambda d: "no_such_module_here:inputs", "cannot import"),
        (lambda d: "json:nothing", "no callable 'nothing'"),
        (lambda d: "os:getcwd", "expected an iterable"),
        (lambda d: _npz(d, z=np.zeros(3)), "lacks x and has z instead; the model's inputs are x"),
        (lambda d: _npz(d, x=np.zeros((5, 4))), "has shape \\(5, 4\\); the model expects \\(batch, n, 4\\)"),
        (lambda d: _npz(d, x=np.zeros((1, 5, 3))), "the model expects"),
        (lambda d: _npz(d, x=np.zeros((1, 5, 4), int)), "is int64; the model expects float32"),
        (lambda d: _npz(d, x=np.array({}, dtype=object)), "holds Python objects"),
        (lambda d: (d / "t.npz").write_text("text") and d / "t.npz", "not a zip archive"),
        (lambda d: (d / "t.txt").write_text("text") and d / "t.txt", "expected a .npz file"),
        (lambda d: [(1, 2)], "has 2 inputs; the model has 1"),
    ],
)
def test_data_that_does_not_fit(
    numpy_program: Any, make: Callable[[Path], Any], complaint: str, tmp_path: Path
) -> None:
    program: Program = numpy_program(softmax, X, Y)
    with pytest.raises(InputError, match=complaint):
        validate(program, program, data=make(tmp_path))


def test_the_report_is_json_and_a_page(numpy_program: Any) -> None:
    report = validate(numpy_program(softmax, X, Y), numpy_program(off_by(1.0), X, Y, source="<b>&"))
    record = json.loads(report.to_json(), parse_constant=lambda name: pytest.fail(name))
    assert record["ok"] is False and record["rewritten"] == "<b>&"
    assert record["summary"]["random"][0]["max_abs"] == pytest.approx(1.0, rel=1e-3)
    page = report.to_html()
    assert report.verdict[1:] in unescape(page)  # there it begins a sentence
    assert "&lt;b&gt;&amp;" in page and "<b>&" not in page
    assert "prefers-color-scheme" in page and "://" not in page


def test_progress_is_told(numpy_program: Any) -> None:
    told: list[str] = []
    validate(
        numpy_program(softmax, X, Y),
        numpy_program(softmax, X, Y),
        progress=lambda what, *_: told.append(what),
    )
    assert {"comparing", "noise floor"} == set(told)


def test_sizes_that_are_asked_for(numpy_program: Any) -> None:
    original = numpy_program(softmax, X, Y)
    report = validate(original, original, sizes={"n": (257, 2), "batch": (3,)})
    assert [c.sizes for c in report.cases if c.group == "random"] == [
        {"batch": 3, "n": 257},
        {"batch": 3, "n": 2},
    ]
    with pytest.raises(InputError, match=r"no dimension 'm'; numpy has batch \(x.0\), n \(x.1"):
        validate(original, original, sizes={"m": (1,)})


def test_lengths_are_odd_long_enough_and_one(numpy_program: Any) -> None:
    original = numpy_program(softmax, X, Y)
    plain = validate(original, original)
    assert [c.sizes["n"] for c in plain.cases if c.group == "random"] == [7, 160, 1]
    wide = {"attention.0": {"form": "window:window=400", "fidelity": "training-free"}}
    rewritten = numpy_program(softmax, X, Y, written={"rewriter.sites": json.dumps(wide)})
    first, long, one = (c.sizes["n"] for c in validate(original, rewritten).cases if c.group == "random")
    assert (first, one) == (7, 1) and long > 400


def test_the_noise_floor_stands_beside_every_measure(numpy_program: Any) -> None:
    report = validate(
        numpy_program(softmax, X, Y), numpy_program(reordered, X, Y), data=[{"x": np.ones((2, 3, 4))}]
    )
    for group in ("random", "adversarial", "data"):
        (output,) = report.summary[group]
        assert output.noise is not None and output.noise.max_abs > 0 and output.noise.elements > 0
        assert output.factor is not None and output.factor < 16
    wrong = validate(numpy_program(softmax, X, Y), numpy_program(off_by(1e-3), X, Y))
    assert wrong.summary["random"][0].factor > 100  # type: ignore[operator]


def test_the_least_tolerance_is_the_one_that_passes(numpy_program: Any) -> None:
    original, rewritten = numpy_program(softmax, X, Y), numpy_program(off_by(1e-3), X, Y)
    found = validate(original, rewritten).summary["random"][0].distance
    assert found is not None
    for name in ("max_abs", "tol", "elem_rel", "kl", "rel_p99"):
        measured = getattr(found, name)
        assert validate(original, rewritten, budget=f"{name}<={measured!r}").ok
        assert not validate(original, rewritten, budget=f"{name}<={measured * (1 - 1e-9)!r}").ok


def test_it_says_where(numpy_program: Any) -> None:
    def one_wrong(x: np.ndarray) -> tuple[np.ndarray]:
        (y,) = softmax(x)
        y[0, -1, 2] = np.nan
        return (y,)

    report = validate(numpy_program(softmax, X, Y), numpy_program(one_wrong, X, Y))
    assert not report.ok
    (output,) = report.summary["random"]
    case = next(c for c in report.cases if c.name == output.case)
    assert output.worst is not None and output.worst.index == (0, case.sizes["n"] - 1, 2)
    assert "2] is 0." in report.verdict and "and nan in the other" in report.verdict
    same = validate(numpy_program(one_wrong, X, Y), numpy_program(one_wrong, X, Y))
    assert same.ok and all(o.worst is None for c in same.cases for o in c.outputs)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "bool", "float16"])
def test_outputs_of_every_kind_and_none(numpy_program: Any, dtype: str) -> None:
    outputs = [("some", ("batch", "n"), dtype), ("none", (0, "n"), dtype)]

    def model(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (x[..., 0] > 0).astype(dtype), np.zeros((0, x.shape[1]), dtype)

    def other(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return 1 - model(x)[0].astype(dtype) if dtype != "bool" else ~model(x)[0], model(x)[1]

    original, rewritten = numpy_program(model, X, outputs), numpy_program(other, X, outputs)
    assert validate(original, original).ok
    report = validate(original, rewritten)
    assert not report.ok and report.summary["random"][0].worst is not None
    assert report.summary["random"][1].ok


def test_an_answer_that_the_last_bits_decide_is_no_difference(numpy_program: Any) -> None:
    """The largest of two numbers that are equal: another order of sums picks the other."""
    outputs = [("best", ("batch", "n"), "int64")]

    def first(x: np.ndarray) -> tuple[np.ndarray]:
        return (np.stack([x[..., 0] + x[..., 1], x[..., 1] + x[..., 0] + x[..., 2] * 0], -1).argmax(-1),)

    def unsteady(x: np.ndarray) -> tuple[np.ndarray]:
        bits = np.ascontiguousarray(x[..., 0]).view(np.int32)
        return ((bits & 1).astype(np.int64),)

    steady = numpy_program(first, X, outputs)
    assert not validate(steady, numpy_program(lambda x: (1 - first(x)[0],), X, outputs)).ok
    original = numpy_program(unsteady, X, outputs)

    def decided(x: np.ndarray) -> tuple[np.ndarray]:
        return (np.where(x[..., 0] == 0, unsteady(x)[0], 1 - unsteady(x)[0]),)

    assert validate(original, numpy_program(decided, X, outputs)).ok


def test_integers_have_a_budget_of_their_own(numpy_program: Any) -> None:
    outputs = [("top", ("batch", "n"), "int64")]
    original = numpy_program(lambda x: (x.argmax(-1),), X, outputs)
    rewritten = numpy_program(lambda x: (np.abs(x).argmax(-1),), X, outputs)
    assert validate(original, rewritten, budget="agreement>=0.2").ok
    assert not validate(original, rewritten, budget="agreement@top>=0.9").ok
    with pytest.raises(InputError, match="the model has no floating output"):
        validate(original, rewritten, budget="cos>=0.9")


def test_the_same_seed_gives_the_same_bytes(numpy_program: Any) -> None:
    pair = numpy_program(softmax, X, Y), numpy_program(reordered, X, Y)
    assert validate(*pair, seed=3).to_json() == validate(*pair, seed=3).to_json()
    assert validate(*pair, seed=3).to_json() != validate(*pair, seed=4).to_json()


def unsteady() -> Callable[[np.ndarray], tuple[np.ndarray]]:
    """Return a model that adds how often it was run."""
    runs = itertools.count()
    return lambda x: (softmax(x)[0] + np.float32(1e-3 * next(runs)),)


def test_a_model_that_does_not_give_the_same_twice_is_named(numpy_program: Any) -> None:
    steady, other = numpy_program(softmax, X, Y), numpy_program(unsteady(), X, Y)
    with pytest.raises(InputError, match=r"outputs when it is run again.*no noise floor.*give a budget"):
        validate(other, steady)
    (note,) = validate(other, steady, budget="max_abs<=1").notes
    assert "other outputs when it is run again" in note
    report = validate(steady, other)
    assert not report.ok and len(report.notes) == 1
    assert validate(steady, steady).notes == ()


def test_budgets_of_what_is_not_there_are_refused_before_anything_runs(numpy_program: Any) -> None:
    def run(x: np.ndarray) -> Any:
        raise AssertionError

    program = numpy_program(run, X, Y)
    for budget, reason in {
        "cos@z>=0.9": "no floating output 'z', only y",
        "agreement>=0.9": "no integer or boolean output",
        "task.wer<=1": "no task metric 'wer'; give a --task",
    }.items():
        with pytest.raises(InputError, match=reason):
            validate(program, program, budget=budget)
