"""Tokens that become one: how they are matched, averaged and told apart again, as every target spells it.

Tokens are added by place, which on a CPU is done in one order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from rewriter.algebra.sizes import ONE, ZERO, Size, SizeLike
from rewriter.kernels.merge.definition import LEAST, STEPS
from rewriter.lower.emitter import Emitter, Handle, KernelEmitter

__all__ = ["Sets", "emit_match", "emit_merge", "emit_place", "emit_take", "sets_of"]


FARTHEST = -1e30
"""The nearness of a token that is there so that there is one: no other is as far."""


@dataclass(frozen=True)
class Sets:
    """The sizes of a matching: protected tokens, then pairs of one token of each set.

    Parameters
    ----------
    protect
        Tokens that are never merged.
    first, second
        Tokens of the two sets.
    r
        Tokens of the first set that join one of the second.
    """

    protect: int
    first: Size
    second: Size
    r: Size

    @property
    def kept(self) -> Size:
        """Tokens of the first set that join none."""
        return self.first - self.r

    @property
    def left(self) -> Size:
        """Tokens after merging."""
        return self.kept + self.second + self.protect


def sets_of(e: Emitter, tokens: Size, r: SizeLike, protect: int) -> Sets:
    """Return the sets that ``tokens`` are dealt to."""
    first = e.ceil_div(tokens - protect, 2)
    return Sets(protect, first, tokens - protect - first, Size.of(r))


def emit_match(
    e: Emitter, traits: Sequence[Handle], sets: Sets, size: Handle | None = None, hidden: bool = False
) -> Handle:
    """Emit who would join whom, from the least to the highest cost; ``[B, 2, first]`` int64.

    Row 0 is the token of the first set, row 1 its partner in the second. See
    `rewriter.kernels.merge.definition.match`.

    Parameters
    ----------
    e
        Target.
    traits
        What tokens are compared by, each ``[B, N, D]``.
    sets
        Sizes.
    size
        How many tokens each stands for, ``[B, N, 1]``; None is one.
    hidden
        Some stand for none.
    """
    wide = [x if e.dtype(x) in ("float32", "float64") else e.map("cast", x, dtype="float32") for x in traits]
    dtype = e.dtype(wide[0])
    if size is not None and e.dtype(size) != dtype:
        size = e.map("cast", size, dtype=dtype)
    x = [_even(e, trait, size, hidden) for trait in wide]
    first, second = _dealt(e, x[0] if len(x) == 1 else e.concat(x, 2), sets)
    shape = (e.shape(traits[0])[0], ONE, sets.first)
    firsts, seconds = (None, None) if size is None else _dealt(e, size, sets)
    best, partner = _nearest(e, first, second, firsts, seconds, hidden)
    if hidden:
        best = _where_nothing(e, firsts, np.inf, best)
    order = e.argsort(e.reshape(best, (shape[0], sets.first)), 1)
    return e.concat([e.reshape(order, shape), e.reshape(emit_take(e, partner, order), shape)], 1)


def _nearest(
    e: Emitter, first: Handle, second: Handle, firsts: Handle | None, seconds: Handle | None, hidden: bool
) -> tuple[Handle, Handle]:
    """Emit the largest nearness to a token of the second set, and its place, both ``[B, first, 1]``.

    Nearness is the squared distance in steps, below 0: ``2 x y - x² - y²`` and half a step, rounded down.
    """
    (batch, count, _), dtype = e.shape(first), e.dtype(first)
    steps = e.constant(-float(STEPS), dtype)

    def square(x: Handle) -> Handle:
        return e.map("mul", e.reduce("sum", e.map("mul", x, x), 2), steps)

    own, others = e.map("add", square(first), e.constant(0.5, dtype)), square(second)
    if not e.shape(second)[1].static:  # there may be none
        second, others = e.pad(second, 1, 0, 1), e.pad(others, 1, 0, 1, FARTHEST)
        seconds = None if seconds is None else e.pad(seconds, 1, 0, 1)
    first = e.map("mul", first, e.constant(2.0 * STEPS, dtype))
    if e.target == "triton":
        given = (first, second, own, others, firsts, seconds)
        found = cast("KernelEmitter", e).kernel("nearest", given, {}, (batch, 2, count))
        best, partner = (e.reshape(e.slice(found, 1, row, 1), (batch, count, ONE)) for row in (0, 1))
        return best, e.map("cast", partner, dtype="int64")
    first = _with_column(e, e.concat([first, own], 2), 1.0)
    second = e.concat([_with_column(e, second, 1.0), others], 2)
    near = e.map("floor", e.matmul(first, e.permute(second, (0, 2, 1))))
    if firsts is not None and seconds is not None:
        near = e.map("mul", near, _reduced(e, firsts, e.permute(seconds, (0, 2, 1))))
    if hidden:
        never = _where_nothing(e, seconds, -np.inf, e.constant(0.0, dtype))
        near = e.map("add", near, e.permute(never, (0, 2, 1)))
    return e.reduce("max", near, 2), e.reshape(e.argmax(near, 2), (batch, count, ONE))


def _reduced(e: Emitter, m: Handle, n: Handle) -> Handle:
    """Emit ``1 / (1 / m + 1 / n)``, 0 where both are 0."""
    total = e.map("maximum", e.map("add", m, n), e.constant(LEAST, e.dtype(m)))
    return e.map("div", e.map("mul", m, n), total)


def _even(e: Emitter, x: Handle, size: Handle | None, hidden: bool) -> Handle:
    """Emit a trait with mean 0 and variance 1 over all tokens; 0 where a token stands for none."""
    dtype = e.dtype(x)
    tiny = e.constant(1e-30, dtype)
    total = e.size(e.shape(x)[1], dtype)
    if size is not None:
        total = e.map("maximum", e.reduce("sum", size, 1), tiny)

    def mean(values: Handle) -> Handle:
        values = values if size is None else e.map("mul", values, size)
        return e.map("div", e.reduce("sum", values, 1), total)

    def seen(values: Handle) -> Handle:
        if size is None or not hidden:
            return values
        return _where_nothing(e, size, 0.0, values)

    x = seen(x)
    x = seen(e.map("sub", x, mean(x)))
    # first by the largest entry, so that no square is too large or too small
    largest = e.reduce("max", e.reduce("max", e.map("abs", x), 2), 1)
    x = e.map("div", x, e.map("maximum", largest, tiny))
    variance = mean(e.reduce("sum", e.map("mul", x, x), 2))
    return e.map("div", x, e.map("maximum", e.map("sqrt", variance), tiny))


def _where_nothing(e: Emitter, counts: Handle, number: float, otherwise: Handle) -> Handle:
    """Emit a number for tokens that count for nothing."""
    nothing = e.map("eq", counts, e.constant(0.0, e.dtype(counts)))
    return e.map("where", nothing, e.constant(number, e.dtype(otherwise)), otherwise)


def emit_merge(
    e: Emitter, x: Handle, size: Handle, matched: Handle, sets: Sets, hidden: bool = False
) -> tuple[Handle, Handle]:
    """Emit the tokens that are left ``[B, left, C]``, means by size, and their sizes ``[B, left, 1]``.

    Differences are summed, so that equal tokens stay what they are to the last bit.

    Parameters
    ----------
    e
        Target.
    x
        Tokens, ``[B, N, C]``.
    size
        How many tokens each stands for, ``[B, N, 1]``, in the dtype of ``x``.
    matched
        By `emit_match`.
    sets
        Sizes.
    hidden
        Some tokens count for nothing. Where none that become one counts, their mean is 0.
    """
    batch = e.shape(x)[0]
    if hidden:
        x = _where_nothing(e, size, 0.0, x)
    (first, second), (firsts, seconds) = _dealt(e, x, sets), _dealt(e, size, sets)
    order, partner = _row(e, matched, 0), e.slice(_row(e, matched, 1), 1, 0, sets.r)
    first, firsts = emit_take(e, first, order), emit_take(e, firsts, order)
    weight = e.slice(firsts, 1, 0, sets.r)
    apart = e.map("sub", e.slice(first, 1, 0, sets.r), emit_take(e, second, partner))
    places = e.reshape(_of_each(e, partner, sets.second), (batch * sets.r,))
    seconds = _sum(e, seconds, places, weight)
    total = emit_take(e, seconds, partner)
    if hidden:
        total = e.map("maximum", total, e.constant(LEAST, e.dtype(x)))
    share = e.map("div", weight, total)
    second = _sum(e, second, places, e.map("mul", apart, share))
    return _joined(e, x, first, second, sets), _joined(e, size, firsts, seconds, sets)


def _sum(e: Emitter, x: Handle, places: Handle, rows: Handle) -> Handle:
    batch, count, width = e.shape(x)
    rows = e.reshape(rows, (*e.shape(places), width))
    return e.reshape(e.accumulate(e.reshape(x, (batch * count, width)), places, rows), e.shape(x))


def _joined(e: Emitter, x: Handle, first: Handle, second: Handle, sets: Sets) -> Handle:
    parts = [e.slice(x, 1, 0, sets.protect)] if sets.protect else []
    if sets.kept != ZERO:
        parts.append(e.slice(first, 1, sets.r, sets.kept))
    return e.concat([*parts, second], 1)


def emit_place(e: Emitter, matched: Handle, sets: Sets) -> Handle:
    """Emit the place of every token among those that are left, ``[B, N]`` int64."""
    batch = e.shape(matched)[0]
    order, partner = _row(e, matched, 0), _row(e, matched, 1)
    rank = e.argsort(e.map("neg", order), 1)
    partner = e.reshape(emit_take(e, e.reshape(partner, (batch, sets.first, ONE)), rank), (batch, sets.first))
    joined = e.map("add", partner, e.size(sets.kept + sets.protect))
    alone = e.map("add", rank, e.size(Size.of(sets.protect) - sets.r))
    first = e.map("where", e.map("lt", rank, e.size(sets.r)), joined, alone)
    second = e.map("add", e.iota(sets.second), e.size(sets.kept + sets.protect))
    second = e.expand(e.reshape(second, (ONE, sets.second)), (batch, sets.second))
    if sets.first != sets.second:
        second = e.pad(second, 1, 0, sets.first - sets.second)
    pairs = e.concat([e.reshape(x, (batch, sets.first, ONE)) for x in (first, second)], 2)
    body = e.reshape(pairs, (batch, sets.first * 2))
    if sets.first != sets.second:
        body = e.slice(body, 1, 0, sets.first + sets.second)
    if not sets.protect:
        return body
    lead = e.reshape(e.iota(sets.protect), (ONE, sets.protect))
    return e.concat([e.expand(lead, (batch, sets.protect)), body], 1)


def emit_take(e: Emitter, x: Handle, places: Handle) -> Handle:
    """Emit the tokens of ``x`` ``[B, N, C]`` at ``places`` ``[B, M]``, ``[B, M, C]``."""
    batch, tokens, width = e.shape(x)
    count = e.shape(places)[1]
    if batch == ONE:
        return e.gather(x, e.reshape(places, (count,)), 1)
    return e.gather(e.reshape(x, (batch * tokens, width)), _of_each(e, places, tokens), 0)


def _of_each(e: Emitter, places: Handle, tokens: Size) -> Handle:
    """Emit places in the elements of a batch as places in all of them, one after the other."""
    batch = e.shape(places)[0]
    if batch == ONE:
        return places
    begin = e.map("mul", e.iota(batch), e.size(tokens))
    return e.map("add", places, e.reshape(begin, (batch, ONE)))


def _with_column(e: Emitter, x: Handle, number: float) -> Handle:
    batch, tokens, _ = e.shape(x)
    return e.concat([x, e.expand(e.constant(number, e.dtype(x)), (batch, tokens, ONE))], 2)


def _dealt(e: Emitter, x: Handle, sets: Sets) -> tuple[Handle, Handle]:
    first = e.slice(x, 1, sets.protect, sets.first, 2)
    return first, e.slice(x, 1, sets.protect + 1, sets.second, 2)


def _row(e: Emitter, matched: Handle, row: int) -> Handle:
    batch, _, first = e.shape(matched)
    return e.reshape(e.slice(matched, 1, row, 1), (batch, first))
