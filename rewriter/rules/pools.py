"""Means and maxima over axes: what is pooled, and how it is computed in one pass over memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from rewriter.algebra.index import Affine, Atom, fresh, resolve
from rewriter.algebra.prims import Constant, Einsum, Iota, Map, Prim, Reduce, Reshape
from rewriter.algebra.sizes import ONE, Size, product
from rewriter.algebra.term import VIEWS, Read, source

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle

__all__ = ["Pool", "Unturned", "emit_pool", "pool_of", "slow_rows", "unturned"]

FEW = 32
"""Fewer rows than this are not worth a second step."""

PARTS = 8
"""Into how many groups rows are divided at most, for a maximum."""


@dataclass(frozen=True)
class Pool:
    """A value that is a mean or a maximum over axes of another, by one operator.

    Parameters
    ----------
    output
        Name of the value.
    of
        ``mean`` or ``max``.
    x
        What is pooled; a named value.
    axes
        Of ``x``, in order.
    """

    output: str
    of: Literal["mean", "max"]
    x: Prim
    axes: tuple[int, ...]


def pool_of(prim: Prim) -> Pool | None:
    """Return a named value as a mean or a maximum over axes, or None."""
    at = _inside(prim)
    if prim.value is None or not at.inputs:
        return None
    (x, *others) = at.inputs
    if isinstance(at.form, Reduce) and at.form.fn == "max":
        return None if x.value is None else Pool(prim.value, "max", x, tuple(sorted(at.form.axes)))
    if at.form not in (Map("mul"), Map("div")) or x.value is not None or "float" not in (prim.dtype or ""):
        return None  # of whole numbers, a mean is rounded
    total = _inside(x)
    axes = _summed(total)
    (x,) = total.inputs if axes else (x,)
    if not axes or x.value is None or not _counts(others[0], product(x.shape[k] for k in axes), at.form):
        return None
    return Pool(prim.value, "mean", x, axes)


def _inside(prim: Prim) -> Prim:
    """Return what a value is before axes of size 1 are put where others were."""
    while isinstance(prim.form, Reshape) and prim.inputs[0].value is None:
        (below,) = prim.inputs
        if [n for n in prim.shape if n != ONE] != [n for n in below.shape if n != ONE]:
            break
        prim = below
    return prim


def _summed(total: Prim) -> tuple[int, ...]:
    """Return the axes of its operand that a value is the sum over; none if it is anything else."""
    if not isinstance(total.form, Einsum) or len(total.inputs) != 1:
        return ()
    (labels,), kept = total.form.operands, total.form.output
    if len(set(labels)) < len(labels) or [label for label in labels if label in kept] != list(kept):
        return ()
    return tuple(k for k, label in enumerate(labels) if label not in kept)


def _counts(factor: Prim, count: Size, form: object) -> bool:
    """Whether a factor (or divisor) makes a sum of so many a mean."""
    while isinstance(factor.form, VIEWS) or (isinstance(factor.form, Map) and factor.form.fn == "cast"):
        factor = factor.inputs[0]
    if product(factor.shape) != ONE:
        return False
    if isinstance(factor.form, Iota):
        return form == Map("div") and factor.form.start == count
    if not isinstance(factor.form, Constant) or not count.static:
        return False
    number = float(np.asarray(factor.form.load()).reshape(()))
    return math.isclose(number, int(count) if form == Map("div") else 1 / int(count), rel_tol=1e-6)


@dataclass(frozen=True)
class Unturned:
    """A value with the axes of another one, in an order of its own.

    Parameters
    ----------
    prim
        The value; it has a name.
    order
        For each of its axes the same axis of the other value, or None for one of size 1.
    copied
        Whether the other one is a copy, or another operator on the way makes one.
    """

    prim: Prim
    order: tuple[int | None, ...]
    copied: bool

    @property
    def turned(self) -> bool:
        """Whether the orders differ."""
        axes = [k for k in self.order if k is not None]
        return axes != sorted(axes)


def unturned(x: Prim) -> Unturned:
    """Return the furthest named value behind a value that has the same axes, in whatever order."""
    index = fresh(x.shape)
    axes = {atom: k for k, dim in enumerate(index) for atom, _ in dim.terms}
    found = Unturned(x, tuple(k if dim.terms else None for k, dim in enumerate(index)), False)
    copied = False
    for at in source(Read(x, index)):
        if at.prim.dtype != x.dtype:
            break
        order = [_axis(dim, n, axes) for dim, n in zip(resolve(at.index), at.prim.shape, strict=True)]
        if at.prim.value is not None and -1 not in order and len(set(order) - {None}) == len(axes):
            found = Unturned(at.prim, tuple(order), copied)
        copied = copied or at.prim.form == Map("identity")
    return found


def _axis(dim: Affine, size: Size, axes: Mapping[Atom, int]) -> int | None:
    """Return which axis is read as a whole, None for one of size 1, and -1 where it is none of them."""
    if size == ONE:
        return None
    ((atom, stride),) = dim.terms if len(dim.terms) == 1 else ((None, ONE),)
    whole = atom is not None and atom.size == size and stride == ONE and not dim.start.terms
    return axes.get(atom, -1) if atom is not None and whole else -1


def slow_rows(shape: Sequence[Size], axes: Sequence[int]) -> tuple[Size, int, Size] | None:
    """Return places before, rows and places of a row where one matrix at a time is pooled over its rows.

    ONNX Runtime's CPU adds or compares the rows of one matrix several times slower than those of several
    matrices; None where it is not slow.
    """
    first, last = axes[0], axes[-1]
    before, after = product(shape[:first]), product(shape[last + 1 :])
    rows = product(shape[first : last + 1]).known()
    together = len(axes) == last - first + 1
    if not together or rows is None or rows < FEW or after == ONE or (before.static and before != ONE):
        return None
    return before, rows, after


def emit_rows(e: Emitter, x: Handle, of: str, axes: Sequence[int]) -> Handle | None:
    """Emit a pool over rows that would be slow: a mean as a product, a maximum of groups of rows first."""
    shape = e.shape(x)
    found = slow_rows(shape, axes)
    if found is None:
        return None
    before, rows, after = found
    if of == "mean":
        weights = e.constant(np.full((1, rows), 1 / rows), e.dtype(x))
        made = e.matmul(weights, e.reshape(x, (before, rows, after)))
    else:
        parts = max(n for n in range(1, PARTS + 1) if rows % n == 0)
        if parts == 1:
            return None
        made = e.reshape(x, (before, parts, rows // parts, after))
        made = e.reduce("max", e.reduce("max", made, 2), 1)
    return e.reshape(made, [ONE if k in axes else n for k, n in enumerate(shape)])


def emit_pool(e: Emitter, x: Handle, of: str, axes: Sequence[int]) -> Handle:
    """Emit a mean or a maximum; the axes stay, with size 1."""
    rows = emit_rows(e, x, of, axes) if e.target.startswith(("onnx", "ort")) else None
    shape = tuple(ONE if k in axes else n for k, n in enumerate(e.shape(x)))
    return e.standard(of, x, axes=tuple(axes), shape=shape) if rows is None else rows
