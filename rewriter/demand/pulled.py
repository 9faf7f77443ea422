"""Axes that are pulled back: from a result to the operands, place by place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rewriter.algebra.prims import (
    Concat,
    Einsum,
    Expand,
    Gather,
    Map,
    Permute,
    Prim,
    Reduce,
    Reshape,
    Slice,
    Softmax,
)
from rewriter.algebra.sizes import ONE, ZERO, Size, product
from rewriter.sites.carried import Mark

__all__ = ["Pulled", "aligned", "pulled"]

Pulled = list[Mark | None] | None
"""Where an axis is in each operand, None in those that do not have it; or None where its places are mixed."""


def pulled(prim: Prim, mark: Mark, n: Size) -> Pulled:
    """Return what a result needs of its operands along an axis: of each, the same place and no other.

    The inverse of `rewriter.sites.carried.carried`.

    Parameters
    ----------
    prim
        No leaf.
    mark
        Where the axis is in the result.
    n
        How many places it has, more than one.
    """
    rule = _RULES.get(type(prim.form))
    return None if rule is None else rule(prim, prim.form, mark, n)


def aligned(rank: int, mark: Mark, shape: Sequence[Size]) -> Mark | None:
    """Return where an axis of a result is in an operand that is broadcast to it; None if it is not there."""
    axis = mark.axis - rank + len(shape)
    return None if axis < 0 or shape[axis] == ONE else mark._replace(axis=axis)


def _map(prim: Prim, form: Map, mark: Mark, n: Size) -> Pulled:
    return [aligned(len(prim.shape), mark, x.shape) for x in prim.inputs]


def _permute(prim: Prim, form: Permute, mark: Mark, n: Size) -> Pulled:
    return [mark._replace(axis=form.order[mark.axis])]


def _reshape(prim: Prim, form: Reshape, mark: Mark, n: Size) -> Pulled:
    (x,), shape = prim.inputs, prim.shape
    high, low = product(shape[: mark.axis]) * mark.outer, mark.inner * product(shape[mark.axis + 1 :])
    for axis, size in enumerate(x.shape):
        outer = high.divide(product(x.shape[:axis]))
        inner = low.divide(product(x.shape[axis + 1 :]))
        if outer is not None and inner is not None and outer * n * inner == size:
            return [Mark(axis, outer, inner)]
    return None


def _slice(prim: Prim, form: Slice, mark: Mark, n: Size) -> Pulled:
    whole = form.start == ZERO and form.step == 1 and prim.shape == prim.inputs[0].shape
    return [mark] if mark.axis != form.axis or whole else None


def _reduce(prim: Prim, form: Reduce, mark: Mark, n: Size) -> Pulled:
    kept = [k for k in range(len(prim.inputs[0].shape)) if k not in form.axes]
    return [mark._replace(axis=kept[mark.axis])]


def _softmax(prim: Prim, form: Softmax, mark: Mark, n: Size) -> Pulled:
    return None if mark.axis == form.axis else [mark]


def _concat(prim: Prim, form: Concat, mark: Mark, n: Size) -> Pulled:
    return None if mark.axis == form.axis else [mark for _ in prim.inputs]


def _gather(prim: Prim, form: Gather, mark: Mark, n: Size) -> Pulled:
    more = len(prim.inputs[1].shape)
    if mark.axis < form.axis:
        return [mark, None]
    if mark.axis < form.axis + more:
        return [None, mark._replace(axis=mark.axis - form.axis)]
    return [mark._replace(axis=mark.axis - more + 1), None]


def _einsum(prim: Prim, form: Einsum, mark: Mark, n: Size) -> Pulled:
    label = form.output[mark.axis]
    found: list[Mark | None] = []
    for part, x in zip(form.operands, prim.inputs, strict=True):
        at = [k for k, own in enumerate(part) if own == label and x.shape[k] != ONE]
        if len(at) > 1:
            return None
        found.append(mark._replace(axis=at[0]) if at else None)
    return found


_RULES: dict[type, Callable[[Prim, Any, Mark, Size], Pulled]] = {
    Map: _map,
    Permute: _permute,
    Reshape: _reshape,
    Expand: _map,
    Slice: _slice,
    Reduce: _reduce,
    Softmax: _softmax,
    Concat: _concat,
    Gather: _gather,
    Einsum: _einsum,
}
