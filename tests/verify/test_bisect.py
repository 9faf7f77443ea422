"""The smallest set of sites to revert, whatever made the second model, and how it is found."""

from __future__ import annotations

from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from rewriter.engine import rewrite
from rewriter.errors import InputError
from rewriter.program.fx import trace
from rewriter.program.load import load
from rewriter.program.program import Program
from rewriter.selectors import parse_apply
from rewriter.verify.bisect import bisect, deciding_cases
from rewriter.verify.compare import validate
from rewriter.verify.hybrid import Blend
from rewriter.verify.module_program import ModuleProgram
from rewriter.verify.reproduce import reproduce
from rewriter.verify.running import run
from tests.merging.vits import TOKENS, WIDTH, Vit
from tests.verify.twelve import fx_layers, onnx_layers

MODELS = {"onnx": onnx_layers, "fx": fx_layers}


@cache
def _model(format_: str) -> Program:
    return MODELS[format_](4)


@pytest.mark.parametrize("formats", ["onnx onnx", "fx fx", "fx onnx"])
def test_reverting_everything_is_the_original_and_nothing_the_rewritten_model(formats: str) -> None:
    first, second = formats.split()
    original, other = _model(first), MODELS[second](4, 1, "mask corner")
    blend = Blend(original, other)
    (case,) = deciding_cases(original, None, 0, 1, True)
    before, after = run(original, case.inputs)[0], run(other, blend.renamed_inputs(case.inputs))[0]
    given = blend.renamed_inputs(case.inputs)
    np.testing.assert_array_equal(run(blend.hybrid(()), given)[0], after)
    np.testing.assert_allclose(run(blend.hybrid(blend.sites), given)[0], before, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run(blend.hybrid(["attention.1"]), given)[0], before, rtol=1e-4, atol=1e-5)
    assert np.abs(run(blend.hybrid(["attention.0"]), given)[0] - before).max() > 1e-2


@pytest.mark.parametrize("formats", ["onnx onnx", "fx fx", "fx onnx"])
def test_a_site_that_computes_something_else_is_the_one_to_revert(formats: str) -> None:
    first, second = formats.split()
    found = bisect(_model(first), MODELS[second](4, 2, "mask corner"))
    assert found.blamed == ("attention.2",) and found.guarantee == "smallest" and not found.ok
    assert found.worst == "attention.2" and found.after is not None and found.after.ok
    assert len(found.attempts) == 3  # what is most suspicious is tried first


@pytest.mark.parametrize("fault", ["query weights", "output weights"])
def test_a_fault_between_sites_is_a_stretch_to_revert(fault: str) -> None:
    found = bisect(_model("onnx"), onnx_layers(4, 2, fault))
    place = {"query weights": "before attention.2", "output weights": "before attention.3"}
    assert found.blamed == (place[fault],)


def test_two_faults_are_both_reverted() -> None:
    other = rewrite(_model("fx"), [parse_apply("window:window=3@1,3")], verify=False)[0]
    found = bisect(_model("fx"), other, budget="max_abs<=1e-4")
    assert found.blamed == ("attention.1", "attention.3") and found.guarantee == "smallest"


def test_the_set_is_a_smallest_one_by_trying_all() -> None:
    original = _model("onnx")
    other, record = rewrite(original, [parse_apply("window:window=3")], verify=False)
    bound = 0.7
    found = bisect(original, other, budget=f"cos>={bound}", plan=record.plan)
    blend = Blend(original, other)
    cases = deciding_cases(original, None, 0, 8, True)

    def cosine(reverted: tuple[str, ...]) -> float:
        pairs = [
            (run(original, c.inputs)[0].ravel(), run(blend.hybrid(reverted), c.inputs)[0].ravel())
            for c in cases
        ]
        x, y = (np.concatenate(z).astype(np.float64) for z in zip(*pairs, strict=True))
        return float(x @ y / np.sqrt((x @ x) * (y @ y)))

    assert found.blamed
    assert cosine(found.blamed) >= bound
    smaller = [s for n in range(len(found.blamed)) for s in combinations(blend.sites, n)]
    assert max(map(cosine, smaller)) < bound
    assert found.kept is not None
    assert {s.site for s in found.kept.steps} == set(blend.sites) - set(found.blamed)


def test_nothing_is_reverted_where_nothing_is_wrong() -> None:
    assert bisect(_model("onnx"), onnx_layers(4)).blamed == ()
    assert bisect(_model("fx"), fx_layers(4)).ok


def test_merged_tokens_are_reverted_by_their_plan() -> None:
    original = trace(Vit().eval(), (torch.randn(1, TOKENS - 1, WIDTH),))
    other, record = rewrite(original, [parse_apply("merge:r=8,through=true@0,2")], verify=False)
    with pytest.raises(InputError, match="give the plan"):
        bisect(original, other, budget="cos>=0.9999")
    found = bisect(original, other, budget="cos>=0.9999", plan=record.plan, limit=1)
    assert found.blamed and found.after is not None and found.after.ok


def test_an_interrupted_search_goes_on(tmp_path: Path) -> None:
    original = _model("onnx")
    other = rewrite(original, [parse_apply("window:window=3")], verify=False)[0]
    whole = bisect(original, other, budget="cos>=0.999")
    path, stopped = tmp_path / "record", 4

    def stop(what: str, done: int, total: int) -> None:
        if what == f"attempt {stopped}":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bisect(original, other, budget="cos>=0.999", resume=path, progress=stop)
    assert len(path.read_text().splitlines()) == stopped
    assert bisect(original, other, budget="cos>=0.999", resume=path).to_dict() == whole.to_dict()
    assert not path.exists()


@pytest.mark.parametrize("format_", ["onnx", "fx"])
@pytest.mark.parametrize(
    ("fault", "unit"), [("mask corner", "attention.2"), ("query weights", "before attention.2")]
)
def test_the_worst_site_alone_is_a_small_pair_of_models(
    format_: str, fault: str, unit: str, tmp_path: Path
) -> None:
    original = _model(format_)
    blend = Blend(original, MODELS[format_](4, 2, fault))
    (case,) = deciding_cases(original, None, 0, 1, True)
    found = reproduce(blend, unit, case, tmp_path)
    assert found.distance is not None and found.distance.rel > 1e-3
    report = validate(found.original, found.rewritten, found.data)
    assert not report.ok
    right = reproduce(blend, "attention.1", case, tmp_path)
    assert right.distance is not None and right.distance.max_abs == 0


def _as_exporters_name(program: Program, path: Path) -> Program:
    """Return the program with every value that is neither input nor output under a name like ``/x``."""
    program.save(path)
    model = onnx.load(path)
    inner = {name for node in model.graph.node for name in node.output}
    inner -= {value.name for value in model.graph.output}
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [f"/{name}" if name in inner else name for name in names]
    del model.graph.value_info[:]
    onnx.save(model, path)
    return load(path)


def test_parts_whose_inputs_have_names_like_paths_can_be_compared(tmp_path: Path) -> None:
    original = _as_exporters_name(_model("onnx"), tmp_path / "a.onnx")
    other = _as_exporters_name(onnx_layers(4, 2, "mask corner"), tmp_path / "b.onnx")
    (case,) = deciding_cases(original, None, 0, 1, True)
    found = reproduce(Blend(original, other), "attention.2", case, tmp_path)
    assert any(name.startswith("/") for name in load(found.original).graph.inputs)
    assert not validate(found.original, found.rewritten, found.data).ok


def test_models_without_sites_are_equal_or_cannot_be_reverted() -> None:
    first, second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    original, other = (trace(module, (torch.randn(2, 4),)) for module in (first, second))
    assert bisect(original, original).blamed == ()
    with pytest.raises(InputError, match=r"nothing can be reverted, as Linear has no sites.* allowed"):
        bisect(original, other)
    with pytest.raises(InputError, match="run as it is"):
        bisect(original, ModuleProgram(first, original))
