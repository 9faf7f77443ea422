"""``inspect``: what is said of near-misses, the gates, and drawings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

Call = Callable[[str], Any]
REFUSED = {"anchor", "reason", "nearest", "reached", "at", "missed"}
ADDED = {"traits", "constant", "empty_row", "grid", "prefix_tokens", "consumers"}


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Write a class head whose node has dots, slashes and brackets in its name."""
    weights = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["logits"], "/head.0/proj/MatMul"),
        helper.make_node("Softmax", ["logits"], ["p"], "/head.0/act[0]/Softmax.1", axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "head",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    path = tmp_path / "head.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_the_object_says_how_far_a_near_miss_got(call: Call, classes: Path, model: Path) -> None:
    record = json.loads(call(f"inspect {classes} --json").out)
    (refused,) = record["refused"]
    assert refused.keys() == REFUSED
    assert refused["anchor"] == "/head.0/act[0]/Softmax.1"
    assert (refused["reached"], refused["missed"], refused["at"]) == ("normaliser", False, None)
    assert record["coverage"] is None
    (site,) = json.loads(call(f"inspect {model} --json").out)["sites"]
    assert site.keys() >= ADDED
    assert (site["traits"], site["consumers"], site["empty_row"]) == ([], [], "never")


def test_the_table_says_it_too(call: Call, classes: Path) -> None:
    said = call(f"inspect {classes}").out
    assert "Left alone" in said and "normaliser" in said


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ("--require-coverage 100", 0),
        ("--require-coverage 0", 0),
        ("--require-coverage 99.5 --require-sites 1", 0),
        ("--require-coverage 100 --require-sites 2", 1),
    ],
)
def test_coverage_of_a_model_that_misses_nothing(call: Call, model: Path, options: str, status: int) -> None:
    said = call(f"inspect {model} {options} --json")
    assert said.status == status
    assert json.loads(said.out)["coverage"] == 100


def test_coverage_of_a_model_that_misses_something(
    call: Call, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rewriter.program.program import Program
    from rewriter.sites.refusal import Refusal

    missed = Refusal("scores", "not understood", nearest="attention", reached="scores")
    other = Refusal("weights", "a class head")
    monkeypatch.setattr(Program, "refused", property(lambda self: (missed, other)))
    for percent, status in ((50, 0), (50.01, 1)):
        said = call(f"inspect {model} --require-coverage {percent}")
        assert said.status == status
        assert "50.0% coverage" in said.out
    assert "1 of 2 places" in said.err and len(said.err.strip().splitlines()) == 1


def test_coverage_of_a_model_without_attention(call: Call, classes: Path) -> None:
    assert call(f"inspect {classes} --require-coverage 100").status == 0


@pytest.mark.parametrize("percent", ["-1", "101", "nan", "many"])
def test_what_is_no_percentage(call: Call, model: Path, percent: str) -> None:
    assert call(f"inspect {model} --require-coverage {percent}").status == 2


def test_a_drawing_of_a_site(call: Call, model: Path) -> None:
    said = call(f"inspect {model} --explain y")
    assert (said.status, said.err) == (0, "")
    for part in ("query", "key", "value", "scores", "MatMul", "Softmax", "^ attention.0"):
        assert part in said.out
    assert said.out.isascii()
    record = json.loads(call(f"inspect {model} --explain scaled --json").out)
    assert (record["explained"]["node"], record["explained"]["site"]) == ("scaled", "attention.0")
    assert record["explained"]["drawing"] and record["sites"]


@pytest.mark.parametrize("name", ["/head.0/act[0]/Softmax.1", "/head.0/proj/MatMul", "p"])
def test_a_drawing_of_a_near_miss(call: Call, classes: Path, name: str) -> None:
    said = call(f"inspect {classes} --explain {name}")
    assert said.status == 0
    assert "stopped here" in said.out and "Softmax.1" in said.out


def test_an_unknown_node(call: Call, classes: Path) -> None:
    said = call(f"inspect {classes} --explain /head.0/act/Softmax")
    assert (said.status, said.out) == (2, "")
    assert "closest: /head.0/act[0]/Softmax.1" in said.err
    assert len(said.err.strip().splitlines()) == 1


def test_a_failed_gate_prints_the_drawing_first(call: Call, model: Path) -> None:
    said = call(f"inspect {model} --explain y --require-sites 2")
    assert said.status == 1
    assert "^ attention.0" in said.out and "--require-sites" in said.err
