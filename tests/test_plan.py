from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rewriter.errors import InputError
from rewriter.kernels.softmax.form import Softmax
from rewriter.kernels.window.form import Window
from rewriter.plan import Plan, PlanStep, fingerprint
from rewriter.program.onnx import OnnxProgram
from tests.program.onnx_models import attention_layers


def program(**options: Any) -> OnnxProgram:
    return OnnxProgram(attention_layers(masked=False, **options), "model.onnx")


def plan_of(p: OnnxProgram) -> Plan:
    return Plan.of(p, zip(p.sites, (Softmax(), Window(8, 1)), strict=True))


def test_it_is_what_was_saved(tmp_path: Path) -> None:
    p = program()
    plan = plan_of(p)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert plan.assignments(p) == [(p.sites[0], Softmax()), (p.sites[1], Window(8, 1))]
    assert [f.name for f in tmp_path.iterdir()] == ["plan.json"]


def test_it_is_readable() -> None:
    found = json.loads(plan_of(program()).to_json())
    assert found["rewriter_plan"] == 1
    assert found["steps"][1]["site"] == "attention.1"
    assert found["steps"][1]["form"] == "window:window=8,sinks=1"


def test_equal_plans_are_equal_bytes() -> None:
    assert plan_of(program()).to_json() == plan_of(program()).to_json()


def test_the_fingerprint_is_of_the_structure() -> None:
    assert fingerprint(program()) == fingerprint(program())
    assert fingerprint(program()) != fingerprint(program(layers=1))


def test_another_computation_is_refused() -> None:
    other = program(kv_heads=4, width=64)
    with pytest.raises(InputError, match=r"another computation at attention\.0 .*make a new plan"):
        plan_of(program()).assignments(other)


def test_a_missing_site_is_named() -> None:
    with pytest.raises(InputError, match=r"names attention\.1, but .* attention\.0.*made for another model"):
        plan_of(program()).assignments(program(layers=1))


GOOD = {"site": "attention.0", "form": "softmax", "anchor": "a", "signature": "s"}
BROKEN: dict[str, tuple[Any, str]] = {
    "a list": ([], "not a plan"),
    "something else": ({"steps": []}, "not a plan"),
    "a newer version": ({"rewriter_plan": 2}, "version 2"),
    "no steps": ({"rewriter_plan": 1, "model": "m"}, "'steps'"),
    "no model": ({"rewriter_plan": 1, "steps": []}, "'model'"),
    "a step that is no object": ({"rewriter_plan": 1, "model": "m", "steps": [3]}, "step 0"),
    "a step without a form": (
        {"rewriter_plan": 1, "model": "m", "steps": [{**GOOD, "form": None}]},
        "step 0",
    ),
    "an unknown form": ({"rewriter_plan": 1, "model": "m", "steps": [{**GOOD, "form": "x"}]}, "no form 'x'"),
    "a wrong parameter": (
        {"rewriter_plan": 1, "model": "m", "steps": [GOOD, {**GOOD, "form": "window:window=0"}]},
        "step 1: .*at least 1",
    ),
    "a site twice": ({"rewriter_plan": 1, "model": "m", "steps": [GOOD, GOOD]}, r"attention\.0 two forms"),
}


@pytest.mark.parametrize(("content", "words"), BROKEN.values(), ids=list(BROKEN))
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, content: Any, words: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=words) as caught:
        Plan.load(path)
    assert "p.json" in str(caught.value)


def test_no_json_and_no_file_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        Plan.load(tmp_path / "missing.json")
    (tmp_path / "t.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not text"):
        Plan.load(tmp_path / "t.json")
    for text in ("{", "[" * 100_000):
        with pytest.raises(InputError, match="not JSON"):
            Plan.from_json(text)


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    plan = Plan("m", (PlanStep("attention.0", Softmax(), "a", "s"),))
    with pytest.raises(InputError, match="cannot be written"):
        plan.save(tmp_path / "no" / "plan.json")
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        plan.save(tmp_path / "taken")
    assert [f.name for f in tmp_path.iterdir()] == ["taken"]
