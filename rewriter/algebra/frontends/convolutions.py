"""Convolutions, and normalisation by fixed statistics, as operators of a graph: what rules fold together.

To the algebra both are leaves; here they are read with their operands, in either dialect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rewriter.program.graph import Graph, Node

__all__ = ["BatchNorm", "Convolution", "batch_norm", "convolution"]


@dataclass(frozen=True)
class Convolution:
    """A convolution.

    Parameters
    ----------
    x, weight, bias
        Names of its operands; ``weight`` is ``[out, in / groups, *kernel]``.
    strides, dilations
        One per axis of the kernel.
    padding
        Zeros before and after each of these axes.
    groups
        Into how many the channels are divided.
    """

    x: str
    weight: str
    bias: str | None
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilations: tuple[int, ...]
    groups: int


@dataclass(frozen=True)
class BatchNorm:
    """``(x - mean) · rsqrt(variance + eps) · weight + bias`` per channel, which is axis 1.

    Parameters
    ----------
    x, weight, bias, mean, variance
        Names of its operands; without a weight it is 1, without a bias 0.
    eps
        Added to the variance.
    """

    x: str
    weight: str | None
    bias: str | None
    mean: str
    variance: str
    eps: float


def convolution(graph: Graph, value: str) -> Convolution | None:
    """Return the convolution that computes a value, or None if none does, or not in plain numbers."""
    node = graph.producer(value)
    if node is None:
        return None
    kind, _, name = node.op.partition("::")
    name = name.partition(".")[0]
    if kind == "aten" and name in ("conv1d", "conv2d", "conv3d", "convolution"):
        return _aten_convolution(graph, node, general=name == "convolution")
    return _onnx_convolution(graph, node) if node.op == "ai.onnx::Conv" else None


def batch_norm(graph: Graph, value: str) -> BatchNorm | None:
    """Return the normalisation by fixed statistics that computes a value, or None."""
    node = graph.producer(value)
    if node is not None and node.op == "getitem" and node.native.args[1] == 0 and node.inputs[0]:
        node = graph.producer(node.inputs[0])
    if node is None:
        return None
    if node.op == "ai.onnx::BatchNormalization" and not node.native.attributes().get("training_mode"):
        x, weight, bias, mean, variance = node.inputs[:5]
        eps = node.native.attributes().get("epsilon", 1e-5)
    elif node.op in ("aten::_native_batch_norm_legit_no_training.default", "aten::batch_norm.default"):
        args = node.native.args
        if node.op == "aten::batch_norm.default" and args[5]:
            return None
        x, weight, bias, mean, variance = (None if a is None else a.name for a in args[:5])
        eps = args[6 if node.op.endswith("training.default") else 7]
    else:
        return None
    return BatchNorm(x, weight, bias, mean, variance, float(eps)) if x and mean and variance else None


def _aten_convolution(graph: Graph, node: Node, *, general: bool) -> Convolution | None:
    args = [*node.native.args, *(None,) * 9][:9]
    rank = _rank(graph, node)
    x, weight, bias, stride, padding, dilation = args[:6]
    transposed, groups = (args[6], args[8]) if general else (False, args[6])
    if rank is None or transposed or isinstance(padding, str) or node.native.kwargs:
        return None
    pads = _each(padding, rank, 0)
    return Convolution(
        x.name,
        weight.name,
        None if bias is None else bias.name,
        _each(stride, rank, 1),
        tuple((n, n) for n in pads),
        _each(dilation, rank, 1),
        1 if groups is None else groups,
    )


def _each(setting: Any, rank: int, default: int) -> tuple[int, ...]:
    """Return one number per axis; a list of one is for all of them."""
    found = [default] if setting is None else [setting] if isinstance(setting, int) else list(setting)
    return tuple(found * rank if len(found) == 1 else found)


def _onnx_convolution(graph: Graph, node: Node) -> Convolution | None:
    rank, attributes = _rank(graph, node), node.native.attributes()
    x, weight, bias = (*node.inputs, None)[:3]
    if rank is None or x is None or weight is None or attributes.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    pads = attributes.get("pads", [0] * 2 * rank)
    return Convolution(
        x,
        weight,
        bias,
        tuple(attributes.get("strides", [1] * rank)),
        tuple(zip(pads[:rank], pads[rank:], strict=True)),
        tuple(attributes.get("dilations", [1] * rank)),
        attributes.get("group", 1),
    )


def _rank(graph: Graph, node: Node) -> int | None:
    """Return how many axes the kernel has; None for an input without a batch, or of unknown rank."""
    x, weight = (graph.values[name].shape if name else None for name in node.inputs[:2])
    return len(weight) - 2 if x is not None and weight is not None and len(x) == len(weight) else None
