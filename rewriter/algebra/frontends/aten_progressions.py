"""Integer tensors that are arithmetic progressions along every axis, whatever operators made them.

Decoders spell causality and packed sequences as comparisons, differences and running sums of positions.
Most of these hold everywhere whatever the lengths are, which this proves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rewriter.algebra.prims import (
    Concat,
    Constant,
    Expand,
    Gather,
    Iota,
    Map,
    Permute,
    Prim,
    Reshape,
    Slice,
    constant,
    expand,
)
from rewriter.algebra.sizes import ONE, ZERO, Size, product

__all__ = ["Progression", "Progressions"]

WHOLE = frozenset("bool int32 int64".split())
"""Dtypes that are looked at; truth values count as 0 and 1."""


@dataclass(frozen=True, slots=True)
class Progression:
    """The value at index ``i`` is ``start + sum(steps[k] * i[k])``; the step along an axis of size 1 is 0."""

    start: Size
    steps: tuple[Size, ...]

    @property
    def number(self) -> int | None:
        """The value that all entries have, if that is one number."""
        return self.start.known() if all(step == ZERO for step in self.steps) else None

    def bounds(self, shape: tuple[Size, ...]) -> tuple[Size, Size] | None:
        """Return the smallest and the largest value, or None when they cannot be told."""
        low = high = self.start
        for step, n in zip(self.steps, shape, strict=True):
            if step.at_least(0):
                high = high + step * (n - 1)
            elif (-step).at_least(0):
                low = low + step * (n - 1)
            else:
                return None
        return low, high


class Progressions:
    """Finds progressions; remembers what it found."""

    def __init__(self) -> None:
        self._found: dict[Prim, Progression | None] = {}

    def of(self, prim: Prim) -> Progression | None:
        """Return the tensor as a progression, or None if it is not proved to be one."""
        if prim.dtype not in WHOLE:
            return None
        if prim not in self._found:
            rule = _RULES.get(type(prim.form))
            found = None if rule is None else rule(self, prim)
            if found is not None:
                flat = (ZERO if n == ONE else s for s, n in zip(found.steps, prim.shape, strict=True))
                found = Progression(found.start, tuple(flat))
            self._found[prim] = found
        return self._found[prim]

    def natural(self, prim: Prim) -> bool:
        """Whether no entry is negative: proved, else False."""
        found = self.of(prim)
        bounds = None if found is None else found.bounds(prim.shape)
        if bounds is not None and bounds[0].at_least(0):
            return True
        while isinstance(prim.form, Reshape | Permute | Expand | Slice) or prim.form == Map("identity"):
            prim = prim.inputs[0]
        if isinstance(prim.form, Constant) and product(prim.shape).known() is not None:
            return int(product(prim.shape)) <= LOADED and bool((np.asarray(prim.form.load()) >= 0).all())
        return False

    def simplified(self, prim: Prim) -> Prim:
        """Return a tensor whose entries are all one number as that number, everything else as it is."""
        if prim.dtype not in WHOLE or isinstance(prim.form, Constant):
            return prim
        found = self.of(prim)
        number = None if found is None else found.number
        if number is None:
            return prim
        scalar = constant(
            np.asarray(number, dtype=np.bool_ if prim.dtype == "bool" else np.int64), prim.dtype
        )
        return expand(scalar, prim.shape) if prim.shape else scalar


LOADED = 1 << 16
"""Known index tensors with more entries are not looked at."""


def _iota(_: Progressions, prim: Prim) -> Progression | None:
    assert isinstance(prim.form, Iota)
    return Progression(prim.form.start, (prim.form.step,))


def _constant(_: Progressions, prim: Prim) -> Progression | None:
    assert isinstance(prim.form, Constant)
    if product(prim.shape) != ONE:
        return None
    return Progression(Size.of(int(np.asarray(prim.form.load()).reshape(()))), (ZERO,) * len(prim.shape))


def _reshape(known: Progressions, prim: Prim) -> Progression | None:
    x = prim.inputs[0]
    found = known.of(x)
    if found is None:
        return None
    if all(step == ZERO for step in found.steps):
        return Progression(found.start, (ZERO,) * len(prim.shape))
    long = [n for n in x.shape if n != ONE]
    if long != [n for n in prim.shape if n != ONE]:
        return None
    steps = iter(step for step, n in zip(found.steps, x.shape, strict=True) if n != ONE)
    return Progression(found.start, tuple(ZERO if n == ONE else next(steps) for n in prim.shape))


def _permute(known: Progressions, prim: Prim) -> Progression | None:
    assert isinstance(prim.form, Permute)
    found = known.of(prim.inputs[0])
    return found and Progression(found.start, tuple(found.steps[k] for k in prim.form.order))


def _expand(known: Progressions, prim: Prim) -> Progression | None:
    found = known.of(prim.inputs[0])
    return found and Progression(found.start, (ZERO,) * (len(prim.shape) - len(found.steps)) + found.steps)


def _slice(known: Progressions, prim: Prim) -> Progression | None:
    assert isinstance(prim.form, Slice)
    found, axis = known.of(prim.inputs[0]), prim.form.axis
    if found is None:
        return None
    step = found.steps[axis]
    steps = (*found.steps[:axis], step * prim.form.step, *found.steps[axis + 1 :])
    return Progression(found.start + step * prim.form.start, steps)


def _concat(known: Progressions, prim: Prim) -> Progression | None:
    """One part after the other is a progression if each goes on where the one before it ends."""
    assert isinstance(prim.form, Concat)
    axis, parts = prim.form.axis, [known.of(x) for x in prim.inputs]
    first = parts[0]
    if first is None or len(parts) == 1:
        return first
    shapes = [x.shape for x in prim.inputs]
    free = [shape[axis] == ONE for shape in shapes]
    found = [part for part in parts if part is not None]
    if len(found) != len(parts):
        return None
    step = next((p.steps[axis] for p, f in zip(found, free, strict=True) if not f), None)
    if step is None:
        step = found[1].start - first.start
    start = first.start
    for part, shape, single in zip(found, shapes, free, strict=True):
        others = part.steps[:axis] + part.steps[axis + 1 :]
        fits = others == first.steps[:axis] + first.steps[axis + 1 :]
        if not fits or part.start != start or not (single or part.steps[axis] == step):
            return None
        start = start + step * shape[axis]
    return Progression(first.start, (*first.steps[:axis], step, *first.steps[axis + 1 :]))


def _gather(known: Progressions, prim: Prim) -> Progression | None:
    assert isinstance(prim.form, Gather)
    data, at, axis = known.of(prim.inputs[0]), known.of(prim.inputs[1]), prim.form.axis
    if data is None:
        return None
    step = data.steps[axis]
    rank = len(prim.inputs[1].shape)
    if step == ZERO:
        return Progression(data.start, (*data.steps[:axis], *(ZERO,) * rank, *data.steps[axis + 1 :]))
    if at is None:
        return None
    inner = tuple(step * s for s in at.steps)
    return Progression(data.start + step * at.start, (*data.steps[:axis], *inner, *data.steps[axis + 1 :]))


def _map(known: Progressions, prim: Prim) -> Progression | None:
    assert isinstance(prim.form, Map)
    rank = len(prim.shape)
    operands = [_aligned(known.of(x), rank) for x in prim.inputs]
    fn = prim.form.fn
    if fn in ("and", "or"):
        return _junction(fn, operands, rank)
    found = [p for p in operands if p is not None]
    rule = _MAPS.get(fn)
    if rule is None or len(found) != len(operands):
        return None
    return rule(prim, found)


def _aligned(found: Progression | None, rank: int) -> Progression | None:
    if found is None or len(found.steps) == rank:
        return found
    return Progression(found.start, (ZERO,) * (rank - len(found.steps)) + found.steps)


def _junction(fn: str, operands: list[Progression | None], rank: int) -> Progression | None:
    values = [None if p is None else p.number for p in operands]
    stopper = fn == "or"
    if any(v is not None and bool(v) == stopper for v in values):
        return _uniform(stopper, rank)
    return None if None in values else _uniform(not stopper, rank)


def _uniform(value: bool | int, rank: int) -> Progression:
    return Progression(Size.of(int(value)), (ZERO,) * rank)


def _sum(prim: Prim, xs: list[Progression]) -> Progression | None:
    if prim.dtype == "bool":
        return None
    return _difference([xs[0], _times(xs[1], Size.of(-1))])


def _difference(xs: list[Progression]) -> Progression:
    a, b = xs
    return Progression(a.start - b.start, tuple(s - t for s, t in zip(a.steps, b.steps, strict=True)))


def _times(x: Progression, factor: Size) -> Progression:
    return Progression(x.start * factor, tuple(s * factor for s in x.steps))


def _product(prim: Prim, xs: list[Progression]) -> Progression | None:
    for x, factor in (xs, xs[::-1]):
        if all(step == ZERO for step in factor.steps):
            return _times(x, factor.start)
    return None


def _cast(prim: Prim, xs: list[Progression]) -> Progression | None:
    (x,) = xs
    if prim.dtype != "bool" or prim.inputs[0].dtype == "bool":
        return x
    bounds = x.bounds(prim.shape)
    if x.number is not None:
        return _uniform(x.number != 0, len(prim.shape))
    return None if bounds is None or not bounds[0].at_least(1) else _uniform(1, len(prim.shape))


def _not(prim: Prim, xs: list[Progression]) -> Progression | None:
    number = xs[0].number
    return None if number is None else _uniform(not number, len(prim.shape))


def _compared(prim: Prim, xs: list[Progression]) -> Progression | None:
    assert isinstance(prim.form, Map)
    verdict = _verdict(prim.form.fn, _difference(xs), prim.shape)
    return None if verdict is None else _uniform(verdict, len(prim.shape))


def _verdict(fn: str, difference: Progression, shape: tuple[Size, ...]) -> bool | None:
    """Return whether ``difference fn 0`` holds everywhere (True) or nowhere (False)."""
    bounds = difference.bounds(shape)
    if bounds is None:
        return None
    low, high = bounds
    always = {
        "le": (-high).at_least(0),
        "lt": (-high).at_least(1),
        "ge": low.at_least(0),
        "gt": low.at_least(1),
        "eq": low == high == ZERO,
        "ne": low.at_least(1) or (-high).at_least(1),
    }
    opposite = {"le": "gt", "lt": "ge", "ge": "lt", "gt": "le", "eq": "ne", "ne": "eq"}[fn]
    return True if always[fn] else False if always[opposite] else None


_MAPS: dict[str, Callable[[Prim, list[Progression]], Progression | None]] = {
    "add": _sum,
    "sub": lambda _, xs: _difference(xs),
    "neg": lambda _, xs: _times(xs[0], Size.of(-1)),
    "mul": _product,
    "cast": _cast,
    "identity": lambda _, xs: xs[0],
    "not": _not,
    **dict.fromkeys(("le", "lt", "ge", "gt", "eq", "ne"), _compared),
}

_RULES: dict[type, Callable[[Progressions, Prim], Progression | None]] = {
    Iota: _iota,
    Constant: _constant,
    Reshape: _reshape,
    Permute: _permute,
    Expand: _expand,
    Slice: _slice,
    Concat: _concat,
    Gather: _gather,
    Map: _map,
}
