"""A random program as a PyTorch module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rewriter.program.tensors import to_torch
from tests.random_programs.steps import Program

__all__ = ["as_module"]

_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "bool": torch.bool,
}


def as_module(program: Program) -> torch.nn.Module:
    """Return a module that does the steps one after the other."""
    return _Module(program)


class _Module(torch.nn.Module):
    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        for name, array in program.constants.items():
            self.register_buffer(name, to_torch(array))

    def forward(self, *inputs: Tensor) -> Any:
        values: dict[str, Tensor] = dict(self.named_buffers())
        values.update((i.tensor.name, x) for i, x in zip(self.program.inputs, inputs, strict=True))
        for step in self.program.steps:
            found = _CALLS[step.op](*(values[n] for n in step.inputs), **step.attributes)
            results = found if isinstance(found, tuple | list) else [found]
            values.update((t.name, x) for t, x in zip(step.outputs, results, strict=True))
        outputs = tuple(values[n] for n in self.program.outputs)
        return outputs if len(outputs) > 1 else outputs[0]


def _slice(x: Tensor, axis: int, start: int, stop: int, step: int = 1) -> Tensor:
    return x[(slice(None),) * axis + (slice(start, stop, step),)]


def _pad(x: Tensor, axis: int, before: int, after: int, value: float) -> Tensor:
    widths = [0, 0] * (x.ndim - axis - 1) + [before, after]
    return torch.nn.functional.pad(x, widths, value=value)


def _unsqueeze(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    for axis in axes:
        x = x.unsqueeze(axis)
    return x


def _gather(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    found = x.index_select(axis, indices.flatten())
    return found.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


_CALLS: dict[str, Callable[..., Any]] = {
    "identity": lambda x: x.clone(),
    "dropout": lambda x: torch.nn.functional.dropout(x, 0.1, training=False),
    "neg": torch.neg,
    "exp": torch.exp,
    "log": torch.log,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "sqrt": torch.sqrt,
    "reciprocal": torch.reciprocal,
    "abs": torch.abs,
    "not": torch.logical_not,
    "isnan": torch.isnan,
    "cast": lambda x, to: x.to(_DTYPES[to]),
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "pow": torch.pow,
    "max": torch.maximum,
    "min": torch.minimum,
    "le": torch.le,
    "lt": torch.lt,
    "ge": torch.ge,
    "gt": torch.gt,
    "eq": torch.eq,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "where": torch.where,
    "matmul": torch.matmul,
    "einsum": lambda *xs, equation: torch.einsum(equation, *xs),
    "gemm": lambda a, b, alpha, transpose: torch.addmm(
        a.new_zeros(()), a, b.t() if transpose else b, alpha=alpha
    ),
    "transpose": lambda x, order: x.permute(order),
    "reshape": lambda x, shape: x.reshape(shape),
    "unsqueeze": _unsqueeze,
    "squeeze": lambda x, axes: x.squeeze(axes),
    "expand": lambda x, shape: x.expand(shape),
    "tile": lambda x, repeats: x.repeat(repeats),
    "concat": lambda *xs, axis: torch.cat(xs, axis),
    "slice": _slice,
    "split": lambda x, axis, sizes: torch.split(x, list(sizes), axis),
    "pad": _pad,
    "gather": _gather,
    "softmax": lambda x, axis: torch.softmax(x, axis),
    "log_softmax": lambda x, axis: torch.log_softmax(x, axis),
    "reduce_sum": lambda x, axes, keepdims: x.sum(axes, keepdim=keepdims),
    "reduce_max": lambda x, axes, keepdims: x.amax(axes, keepdim=keepdims),
    "reduce_mean": lambda x, axes, keepdims: x.mean(axes, keepdim=keepdims),
    "reduce_logsumexp": lambda x, axes, keepdims: x.logsumexp(axes, keepdim=keepdims),
    "arange": lambda count: torch.arange(count),
}
