"""Raising is linear in the graph, whatever its shape: counted in calls, which no other process disturbs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rewriter.program.onnx import OnnxProgram

WIDTH = 8


def _model(nodes: list[onnx.NodeProto], output: str) -> onnx.ModelProto:
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "length", WIDTH])
        for name in ("x", output)
    ]
    weight = numpy_helper.from_array(np.eye(WIDTH, dtype=np.float32), "w")
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _chained(step: Callable[[str, str], list[onnx.NodeProto]], count: int) -> onnx.ModelProto:
    nodes: list[onnx.NodeProto] = []
    last = "x"
    for k in range(count):
        nodes += step(last, f"v{k}")
        last = f"v{k}"
    return _model(nodes, last)


def _node(op: str, output: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), [output], name="same", **attributes)


def pointwise(x: str, y: str) -> list[onnx.NodeProto]:
    return [_node("Tanh", f"{y}a", x), _node("Add", y, f"{y}a", "w")]


def residual(x: str, y: str) -> list[onnx.NodeProto]:
    return [_node("Tanh", f"{y}a", x), _node("MatMul", f"{y}b", f"{y}a", "w"), _node("Add", y, x, f"{y}b")]


def gates(x: str, y: str) -> list[onnx.NodeProto]:
    """A softmax that is no attention: it is refused."""
    return [_node("MatMul", f"{y}a", x, "w"), _node("Softmax", f"{y}b", f"{y}a"), _node("Mul", y, x, f"{y}b")]


def attention(x: str, y: str) -> list[onnx.NodeProto]:
    return [
        _node("MatMul", f"{y}q", x, "w"),
        _node("MatMul", f"{y}k", x, "w"),
        _node("Transpose", f"{y}a", f"{y}k", perm=[0, 2, 1]),
        _node("MatMul", f"{y}b", f"{y}q", f"{y}a"),
        _node("Softmax", f"{y}c", f"{y}b", axis=-1),
        _node("MatMul", f"{y}d", f"{y}c", x),
        _node("Add", y, x, f"{y}d"),
    ]


def moved(x: str, y: str) -> list[onnx.NodeProto]:
    return [_node("Transpose", y, x, perm=[1, 0, 2])]


def wide(count: int) -> onnx.ModelProto:
    names = [f"v{k}" for k in range(count)]
    return _model([*(_node("Tanh", name, "x") for name in names), _node("Sum", "y", *names)], "y")


def read_by_many(count: int) -> onnx.ModelProto:
    names = [f"v{k}" for k in range(count)]
    head = _node("Softmax", "s", "x", axis=-1)
    return _model([head, *(_node("Tanh", name, "s") for name in names), _node("Sum", "y", *names)], "y")


MODELS: dict[str, Callable[[int], onnx.ModelProto]] = {
    **{step.__name__: partial(_chained, step) for step in (pointwise, residual, gates, attention, moved)},
    "wide": wide,
    "read by many": read_by_many,
}


def _calls(model: onnx.ModelProto) -> int:
    """Return how many Python calls it takes to load a model and to raise it."""
    count = 0

    def count_call(frame: object, event: str, arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count_call)
    try:
        program = OnnxProgram(model)
        program.refused  # noqa: B018
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("name", MODELS)
def test_twice_the_graph_takes_at_most_twice_the_calls(name: str) -> None:
    _calls(MODELS[name](4))  # what is imported and remembered on the way is not the graph's
    small, large = _calls(MODELS[name](100)), _calls(MODELS[name](200))
    assert large < 2.2 * small


@pytest.mark.parametrize("name", ["pointwise", "residual", "attention", "moved"])
def test_deep_graphs_do_not_exhaust_the_stack(name: str) -> None:
    program = OnnxProgram(MODELS[name](1000))
    assert len(program.sites) == (1000 if name == "attention" else 0)
