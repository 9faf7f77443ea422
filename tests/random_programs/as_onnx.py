"""A random program as an ONNX model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.random_programs.draws import Draws
from tests.random_programs.steps import Program, Step, Tensor

__all__ = ["as_onnx"]

_TYPES = {
    "float64": TensorProto.DOUBLE,
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}

_PLAIN = {
    "identity": "Identity",
    "neg": "Neg",
    "exp": "Exp",
    "log": "Log",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "relu": "Relu",
    "sqrt": "Sqrt",
    "reciprocal": "Reciprocal",
    "abs": "Abs",
    "not": "Not",
    "isnan": "IsNaN",
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "pow": "Pow",
    "max": "Max",
    "min": "Min",
    "le": "LessOrEqual",
    "lt": "Less",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "eq": "Equal",
    "and": "And",
    "or": "Or",
    "where": "Where",
    "matmul": "MatMul",
    "dropout": "Dropout",
}

_REDUCTIONS = {
    "reduce_sum": ("ReduceSum", 13),
    "reduce_max": ("ReduceMax", 18),
    "reduce_mean": ("ReduceMean", 18),
    "reduce_logsumexp": ("ReduceLogSumExp", 18),
}
"""Operators, and since when their axes are an input."""


def as_onnx(program: Program, draws: Draws) -> onnx.ModelProto:
    """Return the model; the operator set and where constants are kept are decisions too."""
    opset = draws.pick("opset", {17: 3, 13: 1, 18: 1, 21: 1})
    return _Model(program, opset, draws.maybe("constants_are_nodes", 0.3)).proto()


class _Model:
    def __init__(self, program: Program, opset: int, constants_are_nodes: bool) -> None:
        self._program, self._opset, self._as_nodes = program, opset, constants_are_nodes
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []

    def proto(self) -> onnx.ModelProto:
        """Return the whole model."""
        for name, array in self._program.constants.items():
            self._constant(name, array)
        for step in self._program.steps:
            self._step(step)
        tensors = {t.name: t for s in self._program.steps for t in s.outputs}
        outputs = [self._info(tensors[n]) for n in self._program.outputs]
        inputs = [self._info(i.tensor) for i in self._program.inputs]
        graph = helper.make_graph(self._nodes, "random", inputs, outputs, self._initializers)
        made: onnx.ModelProto = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self._opset)], ir_version=8
        )
        return made

    def _info(self, tensor: Tensor) -> onnx.ValueInfoProto:
        shape = [n if self._factor(n) is None else self._program.dynamic.get(n) for n in tensor.shape]
        return helper.make_tensor_value_info(tensor.name, _TYPES[tensor.dtype], shape)

    def _constant(self, name: str, array: np.ndarray) -> str:
        value = numpy_helper.from_array(array, name)
        if self._as_nodes:
            self._nodes.append(helper.make_node("Constant", [], [name], name=f"{name}_node", value=value))
        else:
            self._initializers.append(value)
        return name

    def _integers(self, at: str, values: object) -> str:
        return self._constant(at, np.array(values, np.int64))

    def _node(self, op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        name = f"{op}_{outputs[0]}"
        self._nodes.append(helper.make_node(op, inputs, outputs, name=name, **attributes))

    def _step(self, step: Step) -> None:
        outputs = [t.name for t in step.outputs]
        if step.op in _PLAIN:
            self._node(_PLAIN[step.op], list(step.inputs), outputs)
        elif step.op in _REDUCTIONS:
            self._reduction(step, outputs)
        else:
            _WRITERS[step.op](self, list(step.inputs), outputs, **step.attributes)

    def _reduction(self, step: Step, outputs: list[str]) -> None:
        op, since = _REDUCTIONS[step.op]
        axes, keep = list(step.attributes["axes"]), int(step.attributes["keepdims"])
        inputs = list(step.inputs)
        if self._opset >= since:
            inputs.append(self._integers(f"{outputs[0]}_axes", axes))
            self._node(op, inputs, outputs, keepdims=keep)
        else:
            self._node(op, inputs, outputs, keepdims=keep, axes=axes)

    def cast(self, x: list[str], y: list[str], to: str) -> None:
        self._node("Cast", x, y, to=_TYPES[to])

    def einsum(self, x: list[str], y: list[str], equation: str) -> None:
        self._node("Einsum", x, y, equation=equation)

    def gemm(self, x: list[str], y: list[str], alpha: float, transpose: bool) -> None:
        self._node("Gemm", x, y, alpha=alpha, transB=int(transpose))

    def transpose(self, x: list[str], y: list[str], order: tuple[int, ...]) -> None:
        self._node("Transpose", x, y, perm=list(order))

    def reshape(self, x: list[str], y: list[str], shape: tuple[int, ...]) -> None:
        self._node("Reshape", [*x, self._sizes(f"{y[0]}_shape", shape, True)], y)

    def expand(self, x: list[str], y: list[str], shape: tuple[int, ...]) -> None:
        self._node("Expand", [*x, self._sizes(f"{y[0]}_shape", shape, False)], y)

    def _sizes(self, name: str, shape: tuple[int, ...], inferred: bool) -> str:
        """Return a tensor of sizes; those that are not fixed are computed."""
        free = [n for n in shape if self._factor(n) is not None]
        if not free:
            return self._integers(name, shape)
        if inferred and len(free) == 1:
            return self._integers(name, [-1 if n in free else n for n in shape])
        parts = [self._size(f"{name}_{k}", n) for k, n in enumerate(shape)]
        self._node("Concat", parts, [name], axis=0)
        return name

    def _factor(self, size: int) -> int | None:
        return next((p for p in self._program.dynamic if size and size % p == 0), None)

    def _size(self, name: str, size: int) -> str:
        """Return a tensor of one size."""
        free = self._factor(size)
        if free is None:
            return self._integers(name, [size])
        known = self._size_of(name, free)
        rest = self._size(f"{name}_rest", size // free)
        self._node("Mul", [known, rest], [name])
        return name

    def _size_of(self, name: str, size: int) -> str:
        where = (
            (i.tensor, k) for i in self._program.inputs for k, n in enumerate(i.tensor.shape) if n == size
        )
        tensor, axis = next(where)
        self._node("Shape", [tensor.name], [f"{name}_of"])
        index = self._integers(f"{name}_at", [axis])
        self._node("Gather", [f"{name}_of", index], [f"{name}_size"], axis=0)
        return f"{name}_size"

    def unsqueeze(self, x: list[str], y: list[str], axes: tuple[int, ...]) -> None:
        self._node("Unsqueeze", [*x, self._integers(f"{y[0]}_axes", axes)], y)

    def squeeze(self, x: list[str], y: list[str], axes: tuple[int, ...]) -> None:
        self._node("Squeeze", [*x, self._integers(f"{y[0]}_axes", axes)], y)

    def tile(self, x: list[str], y: list[str], repeats: tuple[int, ...]) -> None:
        self._node("Tile", [*x, self._integers(f"{y[0]}_repeats", repeats)], y)

    def concat(self, x: list[str], y: list[str], axis: int) -> None:
        self._node("Concat", x, y, axis=axis)

    def slice(self, x: list[str], y: list[str], axis: int, start: int, stop: int, step: int = 1) -> None:
        end = self._sizes(f"{y[0]}_ends", (stop,), False)
        starts, axes, steps = (
            self._integers(f"{y[0]}_{n}", [v])
            for n, v in (("starts", start), ("axes", axis), ("steps", step))
        )
        self._node("Slice", [*x, starts, end, axes, steps], y)

    def split(self, x: list[str], y: list[str], axis: int, sizes: tuple[int, ...]) -> None:
        self._node("Split", [*x, self._integers(f"{y[0]}_sizes", sizes)], y, axis=axis)

    def pad(self, x: list[str], y: list[str], axis: int, before: int, after: int, value: float) -> None:
        tensors = {t.name: t for s in self._program.steps for t in s.outputs}
        tensors.update((i.tensor.name, i.tensor) for i in self._program.inputs)
        rank = len(tensors[y[0]].shape)
        pads = [0] * (2 * rank)
        pads[axis], pads[rank + axis] = before, after
        assert value == 0.0
        self._node("Pad", [*x, self._integers(f"{y[0]}_pads", pads)], y)

    def gather(self, x: list[str], y: list[str], axis: int) -> None:
        self._node("Gather", x, y, axis=axis)

    def softmax(self, x: list[str], y: list[str], axis: int) -> None:
        self._node("Softmax", x, y, axis=axis)

    def log_softmax(self, x: list[str], y: list[str], axis: int) -> None:
        self._node("LogSoftmax", x, y, axis=axis)

    def arange(self, x: list[str], y: list[str], count: int) -> None:
        zero, one = self._integers(f"{y[0]}_0", 0), self._integers(f"{y[0]}_1", 1)
        size = self._size(f"{y[0]}_size", count)
        self._node("Squeeze", [size], [f"{y[0]}_limit"])
        self._node("Range", [zero, f"{y[0]}_limit", one], y)


_WRITERS: dict[str, Callable[..., None]] = {
    name: getattr(_Model, name)
    for name in (
        "cast einsum gemm transpose reshape expand unsqueeze squeeze tile concat slice split pad gather"
        " softmax log_softmax arange"
    ).split()
}
