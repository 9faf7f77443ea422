"""What each step of a program means, in numpy. Nothing of the product is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__all__ = ["MEANING"]

Array = np.ndarray


def _softmax(x: Array, axis: int) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    return np.asarray(e / e.sum(axis, keepdims=True))


def _logsumexp(x: Array, axes: Sequence[int], keepdims: bool) -> Array:
    top = x.max(tuple(axes), keepdims=True)
    found = np.log(np.exp(x - top).sum(tuple(axes), keepdims=True)) + top
    return np.asarray(found if keepdims else found.squeeze(tuple(axes)))


def _gemm(a: Array, b: Array, alpha: float, transpose: bool) -> Array:
    return np.asarray(alpha * (a @ (b.T if transpose else b)))


def _slice(x: Array, axis: int, start: int, stop: int, step: int = 1) -> Array:
    return x[(slice(None),) * axis + (slice(start, stop, step),)]


def _split(x: Array, axis: int, sizes: Sequence[int]) -> list[Array]:
    return list(np.split(x, np.cumsum(sizes)[:-1], axis))


def _triangle(x: Array, upper: bool, diagonal: int) -> Array:
    return np.triu(x, diagonal) if upper else np.tril(x, diagonal)


def _cast(x: Array, to: str) -> Array:
    if to == "bool":
        return np.asarray(x != 0)
    return np.asarray(x.astype(np.int64 if to.startswith("int") else np.longdouble))


def _pad(x: Array, axis: int, before: int, after: int, value: float) -> Array:
    widths = [(before, after) if k == axis else (0, 0) for k in range(x.ndim)]
    return np.pad(x, widths, constant_values=value)


MEANING: dict[str, Callable[..., Any]] = {
    "identity": lambda x: x,
    "dropout": lambda x: x,
    "neg": np.negative,
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "sqrt": np.sqrt,
    "reciprocal": lambda x: 1 / x,
    "abs": np.abs,
    "not": np.logical_not,
    "isnan": np.isnan,
    "cast": _cast,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "pow": np.power,
    "max": np.maximum,
    "min": np.minimum,
    "le": np.less_equal,
    "lt": np.less,
    "ge": np.greater_equal,
    "gt": np.greater,
    "eq": np.equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "where": np.where,
    "matmul": np.matmul,
    "einsum": lambda *xs, equation: np.einsum(equation, *xs),
    "gemm": _gemm,
    "transpose": lambda x, order: x.transpose(order),
    "reshape": lambda x, shape: x.reshape(shape),
    "unsqueeze": lambda x, axes: np.expand_dims(x, tuple(axes)),
    "squeeze": lambda x, axes: x.squeeze(tuple(axes)),
    "expand": np.broadcast_to,
    "tile": lambda x, repeats: np.tile(x, repeats),
    "concat": lambda *xs, axis: np.concatenate(xs, axis),
    "slice": _slice,
    "split": _split,
    "pad": _pad,
    "gather": lambda x, indices, axis: np.take(x, indices, axis),
    "softmax": _softmax,
    "log_softmax": lambda x, axis: np.log(_softmax(x, axis)),
    "reduce_sum": lambda x, axes, keepdims: x.sum(tuple(axes), keepdims=keepdims),
    "reduce_max": lambda x, axes, keepdims: x.max(tuple(axes), keepdims=keepdims),
    "reduce_mean": lambda x, axes, keepdims: x.mean(tuple(axes), keepdims=keepdims),
    "reduce_logsumexp": _logsumexp,
    "triangle": _triangle,
    "arange": lambda count: np.arange(count),
}
"""Operation by name; attributes are keywords."""
