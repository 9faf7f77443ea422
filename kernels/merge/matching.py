"""Tokens that become one: how they are matched, averaged and told apart again, as every target spells it.

Sums are products with the matrix of who joins whom: any opset has them, and they add in one order.
"""

from __future__ import annotations

from dataclasses import dataclass

from rewriter.algebra.sizes import ONE, ZERO, Size, SizeLike
from rewriter.kernels.merge.definition import STEPS
from rewriter.lower.emitter import Emitter, Handle

__all__ = ["Sets", "emit_match", "emit_merge", "emit_place", "emit_take", "sets_of"]


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


def emit_match(e: Emitter, metric: Handle, sets: Sets) -> Handle:
    """Emit who would join whom, from the most to the least similar; ``[B, 2, first]`` int64.

    Row 0 is the token of the first set, row 1 its partner in the second. See
    `rewriter.kernels.merge.definition.match`.

    Parameters
    ----------
    e
        Target.
    metric
        What tokens are compared by, ``[B, N, D]``.
    sets
        Sizes.
    """
    if e.dtype(metric) not in ("float32", "float64"):
        metric = e.map("cast", metric, dtype="float32")
    unit = _unit(e, metric)
    first, second = _dealt(e, unit, sets)
    cosines = e.matmul(first, e.permute(second, (0, 2, 1)))
    dtype = e.dtype(cosines)
    steps = e.map("mul", cosines, e.constant(float(STEPS), dtype))
    cosines = e.map("floor", e.map("add", steps, e.constant(0.5, dtype)))
    shape = (e.shape(metric)[0], ONE, sets.first)
    partner = e.reshape(e.argmax(cosines, 2), (shape[0], sets.first, ONE))
    order = e.argsort(e.reshape(e.reduce("max", cosines, 2), (shape[0], sets.first)), 1)
    return e.concat([e.reshape(order, shape), e.reshape(emit_take(e, partner, order), shape)], 1)


def emit_merge(e: Emitter, x: Handle, size: Handle, matched: Handle, sets: Sets) -> tuple[Handle, Handle]:
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
    """
    batch, _, width = e.shape(x)
    (first, second), (firsts, seconds) = _dealt(e, x, sets), _dealt(e, size, sets)
    order, partner = _row(e, matched, 0), e.slice(_row(e, matched, 1), 1, 0, sets.r)
    first, firsts = emit_take(e, first, order), emit_take(e, firsts, order)
    weight = e.slice(firsts, 1, 0, sets.r)
    apart = e.map("sub", e.slice(first, 1, 0, sets.r), emit_take(e, second, partner))
    columns = e.reshape(e.iota(sets.second), (ONE, sets.second, ONE))
    joins = e.map("cast", e.map("eq", columns, e.reshape(partner, (batch, ONE, sets.r))), dtype=e.dtype(x))
    total = e.matmul(joins, e.concat([e.map("mul", apart, weight), weight], 2))
    seconds = e.map("add", seconds, e.slice(total, 2, width, 1))
    second = e.map("add", second, e.map("div", e.slice(total, 2, 0, width), seconds))
    return _joined(e, x, first, second, sets), _joined(e, size, firsts, seconds, sets)


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
    begin = e.map("mul", e.iota(batch), e.size(tokens))
    places = e.map("add", places, e.reshape(begin, (batch, ONE)))
    return e.gather(e.reshape(x, (batch * tokens, width)), places, 0)


def _unit(e: Emitter, x: Handle) -> Handle:
    """Emit vectors of length 1 in the directions of ``x``; those that are no longer than nothing stay so."""
    dtype = e.dtype(x)
    tiny = e.constant(1e-30, dtype)
    # first by the largest entry, so that no square is too large or too small
    x = e.map("div", x, e.map("maximum", e.reduce("max", e.map("abs", x), 2), tiny))
    length = e.map("sqrt", e.reduce("sum", e.map("mul", x, x), 2))
    return e.map("div", x, e.map("maximum", length, tiny))


def _dealt(e: Emitter, x: Handle, sets: Sets) -> tuple[Handle, Handle]:
    first = e.slice(x, 1, sets.protect, sets.first, 2)
    return first, e.slice(x, 1, sets.protect + 1, sets.second, 2)


def _row(e: Emitter, matched: Handle, row: int) -> Handle:
    batch, _, first = e.shape(matched)
    return e.reshape(e.slice(matched, 1, row, 1), (batch, first))
