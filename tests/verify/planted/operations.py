"""The few operations that the models need, computed by PyTorch or written as ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

__all__ = ["OnnxOperations", "Operations", "TorchOperations", "Value"]

Value = Any
"""A tensor of PyTorch, or the name of a value in ONNX."""

DTYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


class Operations(Protocol):
    """What a model is made of."""

    def enter(self, place: str) -> None: ...
    def constant(self, array: np.ndarray) -> Value: ...
    def number(self, number: float) -> Value: ...
    def matmul(self, a: Value, b: Value) -> Value: ...
    def add(self, a: Value, b: Value) -> Value: ...
    def sub(self, a: Value, b: Value) -> Value: ...
    def mul(self, a: Value, b: Value) -> Value: ...
    def div(self, a: Value, b: Value) -> Value: ...
    def root(self, a: Value) -> Value: ...
    def exp(self, a: Value) -> Value: ...
    def mean(self, a: Value) -> Value: ...
    def total(self, a: Value) -> Value: ...
    def highest(self, a: Value) -> Value: ...
    def softmax(self, a: Value, axis: int) -> Value: ...
    def permute(self, a: Value, order: Sequence[int]) -> Value: ...
    def reshape(self, a: Value, shape: Sequence[int]) -> Value: ...
    def take(self, a: Value, places: Sequence[int], axis: int) -> Value: ...
    def concat(self, values: Sequence[Value], axis: int) -> Value: ...
    def rows(self, a: Value) -> Value: ...
    def lt(self, a: Value, b: Value) -> Value: ...
    def both(self, a: Value, b: Value) -> Value: ...
    def either(self, a: Value, b: Value) -> Value: ...
    def negated(self, a: Value) -> Value: ...
    def where(self, condition: Value, a: Value, b: Value) -> Value: ...
    def rounded(self, a: Value, dtype: str) -> Value: ...
    def drop(self, a: Value, share: float) -> Value: ...


class TorchOperations:
    """Computes at once; constants are parameters, made where they are first met."""

    def __init__(self, dtype: str) -> None:
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.parameters: dict[int, torch.nn.Parameter] = {}

    def enter(self, place: str) -> None:
        """Nothing has a name here."""

    def constant(self, array: np.ndarray) -> Value:
        if id(array) not in self.parameters:
            self.parameters[id(array)] = torch.nn.Parameter(torch.from_numpy(array).to(self.dtype), False)
        return self.parameters[id(array)]

    def number(self, number: float) -> Value:
        return number

    def matmul(self, a: Value, b: Value) -> Value:
        return a @ b

    def add(self, a: Value, b: Value) -> Value:
        return a + b

    def sub(self, a: Value, b: Value) -> Value:
        return a - b

    def mul(self, a: Value, b: Value) -> Value:
        return a * b

    def div(self, a: Value, b: Value) -> Value:
        return a / b

    def root(self, a: Value) -> Value:
        return a.sqrt()

    def exp(self, a: Value) -> Value:
        return a.exp()

    def mean(self, a: Value) -> Value:
        return a.mean(-1, keepdim=True)

    def total(self, a: Value) -> Value:
        return a.sum(-1, keepdim=True)

    def highest(self, a: Value) -> Value:
        return a.amax(-1, keepdim=True)

    def softmax(self, a: Value, axis: int) -> Value:
        return a.softmax(axis)

    def permute(self, a: Value, order: Sequence[int]) -> Value:
        return a.permute(*order)

    def reshape(self, a: Value, shape: Sequence[int]) -> Value:
        kept = [a.shape[at] if n == 0 else n for at, n in enumerate(shape)]
        return a.reshape(kept)

    def take(self, a: Value, places: Sequence[int], axis: int) -> Value:
        return a.index_select(axis, torch.tensor(list(places)))

    def concat(self, values: Sequence[Value], axis: int) -> Value:
        return torch.cat(list(values), axis)

    def rows(self, a: Value) -> Value:
        return torch.arange(a.shape[1])

    def lt(self, a: Value, b: Value) -> Value:
        return a < b

    def both(self, a: Value, b: Value) -> Value:
        return a & b

    def either(self, a: Value, b: Value) -> Value:
        return a | b

    def negated(self, a: Value) -> Value:
        return ~a

    def where(self, condition: Value, a: Value, b: Value) -> Value:
        return torch.where(condition, a, b)

    def rounded(self, a: Value, dtype: str) -> Value:
        return a.to(getattr(torch, dtype)).to(self.dtype)

    def drop(self, a: Value, share: float) -> Value:
        return torch.nn.functional.dropout(a, share, training=True)


class OnnxOperations:
    """Writes nodes."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._place, self._made = "", 0

    def enter(self, place: str) -> None:
        """Name what follows after a place: what is changed there renames nothing elsewhere."""
        self._place, self._made = f"{place}/", 0

    def _node(self, operator: str, *inputs: Value, **attributes: Any) -> str:
        name = f"{self._place}{operator}_{self._made}"
        self._made += 1
        operands = [x if isinstance(x, str) else self.number(x) for x in inputs]
        self.nodes.append(helper.make_node(operator, operands, [name], **attributes))
        return name

    def _initializer(self, array: np.ndarray) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def constant(self, array: np.ndarray) -> Value:
        return self._initializer(array.astype(self.dtype))

    def number(self, number: float) -> Value:
        return self._initializer(np.array(number, np.int64 if isinstance(number, int) else self.dtype))

    def matmul(self, a: Value, b: Value) -> Value:
        return self._node("MatMul", a, b)

    def add(self, a: Value, b: Value) -> Value:
        return self._node("Add", a, b)

    def sub(self, a: Value, b: Value) -> Value:
        return self._node("Sub", a, b)

    def mul(self, a: Value, b: Value) -> Value:
        return self._node("Mul", a, b)

    def div(self, a: Value, b: Value) -> Value:
        return self._node("Div", a, b)

    def root(self, a: Value) -> Value:
        return self._node("Sqrt", a)

    def exp(self, a: Value) -> Value:
        return self._node("Exp", a)

    def mean(self, a: Value) -> Value:
        return self._node("ReduceMean", a, axes=[-1], keepdims=1)

    def total(self, a: Value) -> Value:
        return self._node("ReduceSum", a, self._initializer(np.array([-1])), keepdims=1)

    def highest(self, a: Value) -> Value:
        return self._node("ReduceMax", a, axes=[-1], keepdims=1)

    def softmax(self, a: Value, axis: int) -> Value:
        return self._node("Softmax", a, axis=axis)

    def permute(self, a: Value, order: Sequence[int]) -> Value:
        return self._node("Transpose", a, perm=list(order))

    def reshape(self, a: Value, shape: Sequence[int]) -> Value:
        return self._node("Reshape", a, self._initializer(np.array(shape, np.int64)))

    def take(self, a: Value, places: Sequence[int], axis: int) -> Value:
        return self._node("Gather", a, self._initializer(np.array(places, np.int64)), axis=axis)

    def concat(self, values: Sequence[Value], axis: int) -> Value:
        return self._node("Concat", *values, axis=axis)

    def rows(self, a: Value) -> Value:
        size = self._node("Gather", self._node("Shape", a), self._initializer(np.array(1)))
        return self._node("Range", self._initializer(np.array(0)), size, self._initializer(np.array(1)))

    def lt(self, a: Value, b: Value) -> Value:
        return self._node("Less", a, b)

    def both(self, a: Value, b: Value) -> Value:
        return self._node("And", a, b)

    def either(self, a: Value, b: Value) -> Value:
        return self._node("Or", a, b)

    def negated(self, a: Value) -> Value:
        return self._node("Not", a)

    def where(self, condition: Value, a: Value, b: Value) -> Value:
        return self._node("Where", condition, a, b)

    def rounded(self, a: Value, dtype: str) -> Value:
        return self._node("Cast", self._node("Cast", a, to=DTYPES[dtype]), to=DTYPES[self.dtype])

    def drop(self, a: Value, share: float) -> Value:
        ratio, training = self.number(share), self._initializer(np.array(True))
        return self._node("Dropout", a, ratio, training, seed=1)
