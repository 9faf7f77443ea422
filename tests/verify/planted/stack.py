"""Twelve layers of grouped-query attention, of which any setting of one layer may be another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

import rewriter
from rewriter.program.fx import FxProgram
from rewriter.program.onnx import OnnxProgram
from rewriter.program.program import Program
from tests.verify.planted.operations import DTYPES, OnnxOperations, Operations, TorchOperations, Value

__all__ = [
    "HEADS",
    "KV_HEADS",
    "LAYERS",
    "SIZE",
    "WIDTH",
    "Layer",
    "causal",
    "give_weights",
    "one_ahead",
    "stack",
    "window",
    "with_corner",
    "without_last",
]

LAYERS, WIDTH, HEADS, KV_HEADS = 12, 32, 4, 2
SIZE = WIDTH // HEADS

Visible = Callable[[Operations, Value, Value, Value], Value]
"""From query and key positions, and all of them: which keys a query sees."""


def causal(ops: Operations, i: Value, j: Value, n: Value) -> Value:
    """See what comes before."""
    return ops.negated(ops.lt(i, j))


def one_ahead(ops: Operations, i: Value, j: Value, n: Value) -> Value:
    """See the next token as well."""
    return ops.negated(ops.lt(ops.add(i, ops.number(1)), j))


def with_corner(ops: Operations, i: Value, j: Value, n: Value) -> Value:
    """Let the first query see the last key as well."""
    first, last = ops.lt(i, ops.number(1)), ops.negated(ops.lt(j, _last(ops, n)))
    return ops.either(causal(ops, i, j, n), ops.both(first, last))


def without_last(ops: Operations, i: Value, j: Value, n: Value) -> Value:
    """Hide the last key, from itself too."""
    return ops.both(causal(ops, i, j, n), ops.lt(j, _last(ops, n)))


def window(width: int) -> Visible:
    """See so many tokens back, the query's own included."""

    def seen(ops: Operations, i: Value, j: Value, n: Value) -> Value:
        return ops.both(causal(ops, i, j, n), ops.lt(ops.sub(i, j), ops.number(width)))

    return seen


def _last(ops: Operations, rows: Value) -> Value:
    return ops.highest(rows)


@dataclass(frozen=True)
class Layer:
    """How one layer computes.

    Parameters
    ----------
    epsilon
        In the normalisation before the attention.
    scale
        Of the scores, times the root of the features.
    scale_first
        Multiply the queries instead of the scores.
    features
        The order of the features of the keys.
    groups
        Which key head a query head reads.
    visible
        Which keys a query sees, besides padding.
    fill
        The score of a key that is not seen.
    padded
        Whether 1 or 0 in the mask is a token.
    axis
        Of the softmax.
    spelled
        Write the softmax as exponentials and a quotient.
    heads
        The order of the heads of the result.
    gain
        The result times this.
    above
        Do so only in sequences that are longer.
    rounded
        A type that queries, keys and values pass through.
    magnified
        Times this while they do.
    dropped
        Share of the weights that is dropped.
    shifted
        Let keys come one position late.
    transposed
        Transpose the output projection.
    values
        Where values come from: ``v``, or ``k`` by mistake.
    fused_output
        Multiply values by the output projection first, head by head.
    """

    epsilon: float = 1e-5
    scale: float = 1.0
    scale_first: bool = False
    features: tuple[int, ...] = ()
    groups: tuple[int, ...] = (0, 0, 1, 1)
    visible: Visible = field(default=causal)
    fill: float = -1e4
    padded: int = 1
    axis: int = -1
    spelled: bool = False
    heads: tuple[int, ...] = ()
    gain: float = 1.0
    above: int = 0
    rounded: str = ""
    magnified: float = 1.0
    dropped: float = 0.0
    shifted: bool = False
    transposed: bool = False
    values: str = "v"
    fused_output: bool = False


Weights = dict[str, np.ndarray]


@cache
def _weights(seed: int, layers: int) -> tuple[Weights, ...]:
    rng = np.random.default_rng(seed)
    sizes = {"q": WIDTH, "k": KV_HEADS * SIZE, "v": KV_HEADS * SIZE, "o": WIDTH}
    return tuple(
        {n: (rng.normal(size=(WIDTH, m)) * 1.2 * WIDTH**-0.5).astype(np.float32) for n, m in sizes.items()}
        for _ in range(layers)
    )


def _normalised(ops: Operations, x: Value, epsilon: float) -> Value:
    centred = ops.sub(x, ops.mean(x))
    variance = ops.mean(ops.mul(centred, centred))
    return ops.div(centred, ops.root(ops.add(variance, ops.number(epsilon))))


def _split(ops: Operations, x: Value, heads: int) -> Value:
    return ops.permute(ops.reshape(x, [0, 0, heads, SIZE]), (0, 2, 1, 3))


def _attended(ops: Operations, x: Value, keep: Value, layer: Layer, w: Weights) -> Value:
    h = _normalised(ops, x, layer.epsilon)
    q = _split(ops, ops.matmul(h, ops.constant(w["q"])), HEADS)
    k = _split(ops, ops.matmul(h, ops.constant(w["k"])), KV_HEADS)
    v = _split(ops, ops.matmul(h, ops.constant(w["v"])), KV_HEADS) if layer.values == "v" else k
    if layer.rounded:
        factor = ops.number(layer.magnified)
        q, k, v = (ops.div(ops.rounded(ops.mul(t, factor), layer.rounded), factor) for t in (q, k, v))
    if layer.features:
        k = ops.take(k, layer.features, 3)
    k, v = (ops.take(t, layer.groups, 1) for t in (k, v))
    scale = ops.number(layer.scale * SIZE**-0.5)
    if layer.scale_first:
        scores = ops.matmul(ops.mul(q, scale), ops.permute(k, (0, 1, 3, 2)))
    else:
        scores = ops.mul(ops.matmul(q, ops.permute(k, (0, 1, 3, 2))), scale)
    weights = _weighted(ops, scores, x, keep, layer)
    return _projected(ops, weights, v, layer, ops.constant(w["o"]), x)


def _weighted(ops: Operations, scores: Value, x: Value, keep: Value, layer: Layer) -> Value:
    rows = ops.rows(x)
    i, j = ops.reshape(rows, [-1, 1]), ops.reshape(rows, [1, -1])
    if layer.shifted:
        j = ops.add(j, ops.number(1))
    token = ops.lt(ops.number(0), keep) if layer.padded else ops.lt(keep, ops.number(1))
    seen = ops.both(layer.visible(ops, i, j, rows), ops.reshape(token, [0, 1, 1, -1]))
    scores = ops.where(seen, scores, ops.number(layer.fill))
    if layer.spelled:
        powers = ops.exp(ops.sub(scores, ops.highest(scores)))
        return ops.div(powers, ops.total(powers))
    weights = ops.softmax(scores, layer.axis)
    return ops.drop(weights, layer.dropped) if layer.dropped else weights


def _projected(ops: Operations, weights: Value, v: Value, layer: Layer, o: Value, x: Value) -> Value:
    if layer.transposed:
        o = ops.permute(o, (1, 0))
    if layer.fused_output:
        parts = ops.matmul(weights, ops.matmul(v, ops.reshape(o, [1, HEADS, SIZE, WIDTH])))
        total = ops.take(parts, (0,), 1)
        for head in range(1, HEADS):
            total = ops.add(total, ops.take(parts, (head,), 1))
        return ops.reshape(ops.permute(total, (0, 2, 1, 3)), [0, 0, WIDTH])
    out = ops.matmul(weights, v)
    if layer.heads:
        out = ops.take(out, layer.heads, 1)
    out = ops.matmul(ops.reshape(ops.permute(out, (0, 2, 1, 3)), [0, 0, WIDTH]), o)
    if layer.gain == 1.0:
        return out
    changed = ops.mul(out, ops.number(layer.gain))
    if not layer.above:
        return changed
    long = ops.lt(ops.number(layer.above), ops.add(_last(ops, ops.rows(x)), ops.number(1)))
    return ops.where(long, changed, out)


def _stacked(ops: Operations, x: Value, keep: Value, layers: tuple[Layer, ...], seed: int) -> Value:
    for at, (layer, w) in enumerate(zip(layers, _weights(seed, len(layers)), strict=True)):
        ops.enter(f"layer{at}")
        y = _attended(ops, x, keep, layer, w)
        ops.enter(f"layer{at}/sum")
        x = ops.add(x, y)
    ops.enter("end")
    return _normalised(ops, x, 1e-5)


class _Stack(torch.nn.Module):
    """The stack as a module."""

    def __init__(self, layers: tuple[Layer, ...], seed: int, dtype: str) -> None:
        super().__init__()
        self.ops, self.layers, self.seed = TorchOperations(dtype), layers, seed
        with torch.no_grad():
            self(torch.zeros(2, 3, WIDTH, dtype=self.ops.dtype), torch.ones(2, 3, dtype=torch.int64))
        self.weights = torch.nn.ParameterList(self.ops.parameters.values())

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> Any:
        return _stacked(self.ops, x, keep, self.layers, self.seed)


def _onnx(layers: tuple[Layer, ...], seed: int, dtype: str) -> Program:
    ops = OnnxOperations(dtype)
    ops.nodes.append(helper.make_node("Identity", [_stacked(ops, "x", "keep", layers, seed)], ["y"]))
    shape: list[str | int | None] = ["batch", "length", WIDTH]
    graph = helper.make_graph(
        ops.nodes,
        "stack",
        [
            helper.make_tensor_value_info("x", DTYPES[dtype], shape),
            helper.make_tensor_value_info("keep", TensorProto.INT64, shape[:2]),
        ],
        [helper.make_tensor_value_info("y", DTYPES[dtype], shape)],
        ops.initializers,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return OnnxProgram(onnx.ModelProto.FromString(made.SerializeToString()), "stack")


def _fx(layers: tuple[Layer, ...], seed: int, dtype: str) -> Program:
    module = _Stack(layers, seed, dtype)
    batch, length = torch.export.Dim("batch", max=64), torch.export.Dim("length", max=4096)
    inputs = (torch.zeros(2, 3, WIDTH, dtype=getattr(torch, dtype)), torch.ones(2, 3, dtype=torch.int64))
    return rewriter.trace(module, inputs, dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length}))


def stack(
    kind: str, at: int | None = None, seed: int = 0, dtype: str = "float32", count: int = LAYERS, **fault: Any
) -> Program:
    """Return the model, perhaps with other settings in one layer.

    Parameters
    ----------
    kind
        ``"onnx"`` or ``"fx"``.
    at
        The layer; None for all of them.
    seed
        Of the weights.
    dtype
        Of everything.
    count
        How many layers there are.
    **fault
        Fields of `Layer`.
    """
    layers = [Layer()] * count
    for place in range(count) if at is None else [at]:
        layers[place] = replace(layers[place], **fault)
    make = {"onnx": _onnx, "fx": _fx}[kind]
    return make(tuple(layers), seed, dtype)


def give_weights(program: Program, seed: int) -> None:
    """Give a traced model other weights, in place: tracing takes longer than everything else."""
    assert isinstance(program, FxProgram)
    tensors = list(program.exported.state_dict.values())
    arrays = [array for w in _weights(seed, len(tensors) // 4) for array in w.values()]
    for tensor, array in zip(tensors, arrays, strict=True):
        tensor.data.copy_(torch.from_numpy(array))
