"""Projections: a tensor's last axis times a constant matrix, plus a constant bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rewriter.algebra.prims import Constant, Einsum, Map, Permute, Prim, Slice
from rewriter.algebra.sizes import Size
from rewriter.program.graph import Graph

_IDENTITY = Map("identity")

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle

__all__ = ["Projection", "emit_projection", "is_known", "known", "projection_of", "weight_readers"]


@dataclass(frozen=True)
class Projection:
    """``x · weight + bias``.

    Parameters
    ----------
    output, source
        Names of the value and of ``x``.
    shape, dtype
        Of the value.
    weight
        ``[in, out]``; see `known`.
    bias
        ``[out]``, or None.
    """

    output: str
    source: str
    shape: tuple[Size, ...]
    dtype: str
    weight: Prim
    bias: Prim | None

    @property
    def width(self) -> Size:
        """How many columns the weight has."""
        return self.shape[-1]


def projection_of(prim: Prim, *, whole: bool = True) -> Projection | None:
    """Return a named value as a projection, or None.

    Parameters
    ----------
    prim
        The value.
    whole
        Whether product and bias must be one operator.
    """
    bias: Prim | None = None
    at = prim
    if at.form == Map("add") and len(at.inputs) == 2:
        at, bias = at.inputs if is_known(at.inputs[1]) else at.inputs[::-1]
        if not is_known(bias) or bias.shape != prim.shape[-1:]:
            return None
        if whole and at.value is not None:
            return None
    if prim.value is None or not isinstance(at.form, Einsum) or len(at.inputs) != 2 or at.dtype is None:
        return None
    x, weight = at.inputs
    (left, right), rank = at.form.operands, len(at.shape)
    plain = left[:-1] == at.form.output[:-1] and right == (left[-1], at.form.output[-1]) and len(left) == rank
    if not plain or x.value is None or not is_known(weight) or len(set(left)) != rank:
        return None
    return Projection(prim.value, x.value, prim.shape, at.dtype, weight, bias)


def known(x: Prim) -> np.ndarray:
    """Return a constant, which may be transposed or a part of another one; see `is_known`."""
    if isinstance(x.form, Permute):
        return np.transpose(known(x.inputs[0]), x.form.order)
    if isinstance(x.form, Slice):
        places = int(x.form.start) + x.form.step * np.arange(int(x.shape[x.form.axis]))
        return np.take(known(x.inputs[0]), places, x.form.axis)
    if x.form == _IDENTITY:
        return known(x.inputs[0])
    assert isinstance(x.form, Constant), "it has been looked at"
    return np.asarray(x.form.load())


def is_known(x: Prim) -> bool:
    """Whether a value is a constant, which may be transposed or a part of another one."""
    while isinstance(x.form, Permute) or x.form == _IDENTITY or _is_part(x):
        x = x.inputs[0]
    return isinstance(x.form, Constant)


def _is_part(x: Prim) -> bool:
    form = x.form
    return isinstance(form, Slice) and form.start.static and x.shape[form.axis].static


def weight_readers(graph: Graph, projection: Projection) -> int:
    """Return how many operators read a projection's weight."""
    weight = projection.weight
    while weight.value is None and weight.inputs:
        weight = weight.inputs[0]
    return len(graph.readers(weight.value)) if weight.value is not None else 1


def emit_projection(e: Emitter, x: Handle, weight: np.ndarray, bias: np.ndarray | None, dtype: str) -> Handle:
    """Emit ``x · weight + bias``, by one operator where the target has one.

    Parameters
    ----------
    x
        ``[..., in]``.
    weight, bias
        ``[in, out]`` and ``[out]``, or None.
    dtype
        Of all of them.
    """
    added = None if bias is None else e.constant(bias, dtype)
    shape = (*e.shape(x)[:-1], Size.of(weight.shape[1]))
    whole = e.standard("linear", x, e.constant(np.ascontiguousarray(weight.T), dtype), added, shape=shape)
    if whole is not None:
        return whole
    made = e.matmul(x, e.constant(weight, dtype))
    return made if added is None else e.map("add", made, added)
