"""Axes that are carried along: through which operators each place of an axis keeps to itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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

__all__ = ["Mark", "broadcast", "carried"]


class Mark(NamedTuple):
    """Where an axis of ``n`` places is in a tensor: a factor of one of its axes.

    Parameters
    ----------
    axis
        The axis of the tensor, which is the row-major product ``outer · n · inner``.
    outer, inner
        What it is multiplied with.
    """

    axis: int
    outer: Size = ONE
    inner: Size = ONE


Marks = Sequence[Mark | None]
"""One per operand; None where an operand does not have the axis."""


def carried(prim: Prim, marks: Marks, n: Size) -> Mark | None:
    """Return where the axis is in a result, each place of which depends on the same place of the operands.

    Parameters
    ----------
    prim
        No leaf.
    marks
        Where it is in each of the operands.
    n
        How many places it has, more than one.

    Returns
    -------
    Mark or None
        None if places are mixed, chosen, reordered or told apart by their position.
    """
    rule = _RULES.get(type(prim.form))
    return None if rule is None else rule(prim, prim.form, marks, n)


def broadcast(prim: Prim, operands: Sequence[Prim], marks: Marks) -> Mark | None:
    """Return where the axis is after operands are broadcast to a result and met place by place."""
    rank = len(prim.shape)
    found = {m._replace(axis=m.axis + rank - len(x.shape)) for x, m in _with_marks(operands, marks) if m}
    if len(found) != 1:
        return None
    (mark,) = found
    if prim.shape[mark.axis] == ONE:
        return None
    for x, m in _with_marks(operands, marks):
        at = mark.axis - rank + len(x.shape)
        if m is None and at >= 0 and x.shape[at] != ONE:
            return None  # it has a value of its own for every place
    return mark


def _with_marks(operands: Sequence[Prim], marks: Marks) -> list[tuple[Prim, Mark | None]]:
    return list(zip(operands, marks, strict=True))


def _through_map(prim: Prim, form: Map, marks: Marks, n: Size) -> Mark | None:
    return broadcast(prim, prim.inputs, marks)


def _through_permute(prim: Prim, form: Permute, marks: Marks, n: Size) -> Mark | None:
    (mark,) = marks
    return None if mark is None else mark._replace(axis=form.order.index(mark.axis))


def _through_reshape(prim: Prim, form: Reshape, marks: Marks, n: Size) -> Mark | None:
    (mark,) = marks
    if mark is None:
        return None
    old = prim.inputs[0].shape
    high, low = product(old[: mark.axis]) * mark.outer, mark.inner * product(old[mark.axis + 1 :])
    for axis, size in enumerate(prim.shape):
        outer = high.divide(product(prim.shape[:axis]))
        inner = low.divide(product(prim.shape[axis + 1 :]))
        if outer is not None and inner is not None and outer * n * inner == size:
            return Mark(axis, outer, inner)
    return None


def _through_expand(prim: Prim, form: Expand, marks: Marks, n: Size) -> Mark | None:
    (mark,), (x,) = marks, prim.inputs
    if mark is None:
        return None
    axis = mark.axis + len(prim.shape) - len(x.shape)
    return mark._replace(axis=axis) if prim.shape[axis] == x.shape[mark.axis] else None


def _through_slice(prim: Prim, form: Slice, marks: Marks, n: Size) -> Mark | None:
    (mark,) = marks
    if mark is None or mark.axis != form.axis:
        return mark
    whole = form.start == ZERO and form.step == 1
    return mark if whole and prim.shape[form.axis] == prim.inputs[0].shape[form.axis] else None


def _through_reduce(prim: Prim, form: Reduce, marks: Marks, n: Size) -> Mark | None:
    (mark,) = marks
    if mark is None or mark.axis in form.axes:
        return None
    return mark._replace(axis=mark.axis - sum(a < mark.axis for a in form.axes))


def _through_softmax(prim: Prim, form: Softmax, marks: Marks, n: Size) -> Mark | None:
    (mark,) = marks
    return None if mark is None or mark.axis == form.axis else mark


def _through_concat(prim: Prim, form: Concat, marks: Marks, n: Size) -> Mark | None:
    (mark, *others) = set(marks)
    return None if others or mark is None or mark.axis == form.axis else mark


def _through_gather(prim: Prim, form: Gather, marks: Marks, n: Size) -> Mark | None:
    data, indices = marks
    if data is None and indices is not None:
        return indices._replace(axis=indices.axis + form.axis)
    if data is None or indices is not None or data.axis == form.axis:
        return None
    more = len(prim.inputs[1].shape) - 1
    return data if data.axis < form.axis else data._replace(axis=data.axis + more)


def _through_einsum(prim: Prim, form: Einsum, marks: Marks, n: Size) -> Mark | None:
    parts = list(zip(form.operands, prim.inputs, marks, strict=True))
    labels = {(part[m.axis], m.outer, m.inner) for part, _, m in parts if m is not None}
    if len(labels) != 1:
        return None
    ((label, outer, inner),) = labels
    if label not in form.output:
        return None
    for part, x, m in parts:
        if m is None and label in part and x.shape[part.index(label)] != ONE:
            return None
    return Mark(form.output.index(label), outer, inner)


_RULES: dict[type, Callable[[Prim, Any, Marks, Size], Mark | None]] = {
    Map: _through_map,
    Permute: _through_permute,
    Reshape: _through_reshape,
    Expand: _through_expand,
    Slice: _through_slice,
    Reduce: _through_reduce,
    Softmax: _through_softmax,
    Concat: _through_concat,
    Gather: _through_gather,
    Einsum: _through_einsum,
}
