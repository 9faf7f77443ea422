"""A few hundred random programs: what is committed is right, and every attention is found."""

from __future__ import annotations

import numpy as np
import pytest

import tests.random_programs.judge as judge
import tests.random_programs.shrink as shrink
from rewriter.program.tensors import to_numpy, to_torch
from tests.random_programs.as_module import as_module
from tests.random_programs.as_onnx import as_onnx
from tests.random_programs.case import Case, case
from tests.random_programs.expected import MUTATIONS
from tests.random_programs.feeds import feeds
from tests.random_programs.judge import Verdict, judged
from tests.random_programs.report import snippet
from tests.random_programs.summary import Record, summary

COUNT, CHUNK = 300, 25

NOT_YET_FOUND: dict[int, str] = {}
"""Cases in which the attention is not found as it should be, and why."""


@pytest.mark.parametrize("first", range(0, COUNT, CHUNK))
def test_what_is_committed_is_right_and_attention_is_found(first: int) -> None:
    for seed in range(first, first + CHUNK):
        made = case(seed, form="fx" if seed % 60 == 0 else "onnx")
        problems = judged(made).problems
        if seed in NOT_YET_FOUND:
            problems = [p for p in problems if not p.startswith("not found")]
        assert not problems, f"{made}: {problems}"


def test_enough_is_generated() -> None:
    made = [case(seed) for seed in range(2 * COUNT)]
    assert sum(c.expected.sites for c in made) > COUNT
    names = {name for c in made for name in c.draws.made}
    assert {"loop_by", "groups", "sink_first", "packed_columns", "scores_mixed_product"} <= names
    assert {c.draws.made["mutation"] for c in made} == {"none", *MUTATIONS}
    assert any(c.program.dynamic for c in made)


def test_a_case_is_its_number() -> None:
    assert str(case(5).program) == str(case(5).program) != str(case(6).program)


def test_a_decision_does_not_change_the_others() -> None:
    made, other = case(4).draws.made, case(4, normaliser="log softmax").draws.made
    assert other["normaliser"] == "log softmax"
    assert {n for n in made if made[n] != other.get(n, made[n])} <= {"normaliser"}


# the reference


@pytest.mark.parametrize("seed", range(24))
def test_both_spellings_compute_what_the_program_says(seed: int) -> None:
    import onnxruntime

    program = case(seed, dtype="float32", dynamic="nothing", mutation="none", form="onnx").program
    inputs = next(feeds(program, seed))[1]
    exact = program.evaluate(inputs)
    session = onnxruntime.InferenceSession(
        as_onnx(program, case(seed).draws).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    module = as_module(program)(*map(to_torch, inputs.values()))
    for found in (session.run(None, inputs), [module]):
        np.testing.assert_allclose(to_numpy(found[0]), exact[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mutation", sorted(set(MUTATIONS) - {"scores returned", "weights returned"}))
def test_a_mutation_is_another_program(mutation: str) -> None:
    fixed = {
        "dtype": "float64",
        "dynamic": "nothing",
        "sizes_coincide": "yes",
        "every_size": 4,
        "extra": "none",
    }
    spelled = {"normaliser": MUTATIONS[mutation].normaliser or "softmax", "kv_heads": 2, "mask0": "none"}
    plain, other = (
        case(3, mutation=m, place="inputs", constant="no", batch_axes=1, **fixed, **spelled)
        for m in ("none", mutation)
    )
    inputs = next(feeds(other.program, 3))[1]
    a, b = (c.program.evaluate(inputs)[0] for c in (plain, other))
    assert not np.allclose(a, b), mutation


def test_other_sizes_are_the_same_program() -> None:
    made = next(c for c in map(case, range(COUNT)) if len(c.program.dynamic) > 1)
    small = made.program.resized({11: 2, 13: 7, 17: 5})
    inputs = next(feeds(small, 0))[1]
    assert small.evaluate(inputs)[0].size < made.program.evaluate(next(feeds(made.program, 0))[1])[0].size
    assert small.evaluate(inputs)[0].shape == judge._run(judge._loaded(made), inputs)[0].shape


# the judge


def _plain() -> Case:
    simple = {
        name: value for name, value in case(1).draws.simplest.items() if "noise" in name or "mask" in name
    }
    return case(1, **{**simple, "mutation": "none", "dtype": "float32", "form": "onnx", "dynamic": "nothing"})


def test_a_wrong_commit_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = _plain()
    assert not judged(made).problems

    def nearly(_: object, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [x * 1.001 for x in made.program.evaluate(inputs)]

    monkeypatch.setattr(judge, "_run", nearly)
    wrong = judge._differences(made, "wrong commit", judge._loaded(made), _truths(made))
    assert len(wrong) == 1
    assert wrong[0].startswith("wrong commit, output 0 on normal inputs: error")


def _truths(made: Case) -> list[judge.Truth]:
    found = []
    for name, inputs in feeds(made.program, made.seed):
        exact = made.program.evaluate(inputs)
        found.append((name, inputs, exact, [x.astype(np.float32) for x in exact]))
    return found


NAN = float("nan")


@pytest.mark.parametrize(
    ("truth", "old", "new", "word"),
    [
        ([1.0, 2.0], [1.0, 2.0], [1.0, 2.0], ""),
        ([1.0, 2.0], [1.0, 2.0], [1.0, NAN], "became NaN"),
        ([1.0, NAN], [1.0, NAN], [1.0, 2.0], "became numbers"),
        ([1.0, 2.0], [1.0, NAN], [1.0, 2.0], ""),
        ([1.0, 2.0], [1.0, 2.0], [1.0, 2.1], "error"),
        ([1.0, 2.0], [1.0, 2.02], [1.0, 2.1], ""),
        ([1.0, 2.0], [1.0, 2.0], [[1.0, 2.0]], "shape"),
    ],
)
def test_numbers_are_compared_where_the_original_has_any(
    truth: list[float], old: list[float], new: list[float], word: str
) -> None:
    found = judge._difference(np.array(truth), np.array(old), np.array(new), _plain())
    assert (word in found) if word else not found


def test_a_crash_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("atom")

    monkeypatch.setattr(judge, "_judge", broken)
    assert judged(_plain()).problems == ["crash: KeyError: 'atom'"]


# shrinking and reports


def test_shrinking_keeps_what_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(made: Case) -> Verdict:
        decisions = made.draws.made
        both = decisions["normaliser"] == "log softmax" and decisions["mask0"] == "causal"
        return Verdict(problems=["not found: it"] if both else [])

    monkeypatch.setattr(shrink, "judged", fails)
    start = case(11, normaliser="log softmax", mask0="causal")
    smallest = shrink.shrunk(start, "not found")
    made, simplest = smallest.draws.made, smallest.draws.simplest
    assert fails(smallest).problems
    assert {n for n in made if made[n] != simplest[n]} == {"normaliser", "mask0"}
    assert len(smallest.program.steps) < len(start.program.steps)


def test_a_snippet_reproduces_the_case() -> None:
    made = case(7, normaliser="log softmax")
    assert str(made) == "case(7, normaliser='log softmax')"
    code = snippet(made)
    assert "from tests.random_programs.case import case" in code
    assert all(line.startswith(("#", "from", "assert")) for line in code.splitlines())


def test_a_summary_counts() -> None:
    records = [Record.of(_plain(), Verdict(found=1, committed=1)), Record.of(_plain(), Verdict(["crash: x"]))]
    text = summary([Record.from_dict(r.to_dict()) for r in records])
    assert "cases 2 (2 onnx)" in text
    assert "attentions generated 2, found 1" in text
    assert "wrong commit 0" in text
    assert "crash 1" in text
