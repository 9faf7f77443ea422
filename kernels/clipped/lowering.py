"""How a clipped softmax is emitted: blocks of queries, each with the keys that its band lets it see.

The clip needs the sum over a whole row, so that no fused attention operator can compute it. A block is small:
its scores are made, normalised, clipped and multiplied by the values before the next block's are made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from rewriter.algebra.sizes import ONE, Size
from rewriter.forms import Canonical
from rewriter.lower.attention import capped_and_masked, spelled_out, with_sinks
from rewriter.lower.band import emit_band
from rewriter.lower.emitter import Emitter, Handle

__all__ = ["Stretch", "block_length", "emit_clipped", "query_blocks"]

SMALL_BLOCK = 1 << 17
"""Scores of a block that stay in a core's cache."""

LARGE_BLOCK = 1 << 22
"""Scores beyond which a block is slow.

A larger one comes from fresh pages of the operating system at every call: measured on CPU, 13 million scores
take twice as long as three times 4 million.
"""

FEW, MANY = 16, 64
"""Blocks that a site is split into to make them small, and so that they are not large."""

LEAST_ROWS = 32
"""Queries of a block, at least."""

DYNAMIC_BLOCKS = 8
"""Blocks of a site whose length is not known."""


@dataclass(frozen=True)
class Stretch:
    """Weights ``w`` become ``clip((zeta - g) · w + g, 0, 1)``; ``g = gamma - alpha / J`` with ``J`` keys.

    Parameters
    ----------
    zeta
        1 or more.
    gamma
        0 or less.
    alpha
        0 or more.
    """

    zeta: float
    gamma: float
    alpha: float = 0.0


def emit_clipped(e: Emitter, a: Canonical, stretch: Stretch) -> Handle:
    """Emit attention by a clipped softmax, ``[B, H, I, E]``; a query that sees no key gives 0."""
    if (found := _by_one_operator(e, a, stretch)) is not None:
        return found
    dtype = e.dtype(a.q)
    if dtype in ("float16", "bfloat16"):  # scores have more digits in fused attention, which this replaces
        names = ("q", "k", "v", "bias", "sink")
        wide = {
            name: e.map("cast", x, dtype="float32") for name in names if (x := getattr(a, name)) is not None
        }
        return e.map("cast", emit_clipped(e, replace(a, **wide), stretch), dtype=dtype)
    parts = [_attend(e, part, stretch, a.shape["J"]) for part in query_blocks(e, a)]
    result = parts[0] if len(parts) == 1 else e.concat(parts, 2)
    return result if e.shape(result)[2] == a.shape["I"] else e.slice(result, 2, 0, a.shape["I"])


def _by_one_operator(e: Emitter, a: Canonical, stretch: Stretch) -> Handle | None:
    """Emit it by an operator that takes functions of scores and weights, or nothing and return None."""
    if a.bias is not None or a.sink is not None or a.empty_row != "never":
        return None

    def of_scores(inner: Emitter, scores: Handle) -> Handle:
        mask, dtype = None, inner.dtype(scores)
        if a.band is not None:
            mask = emit_band(inner, a.band, inner.iota(a.shape["I"]), inner.iota(a.shape["J"]), dtype)
        return capped_and_masked(inner, scores, a.softcap, mask)

    def of_weights(inner: Emitter, weights: Handle) -> Handle:
        bounds = _bounds(inner, stretch, a.shape["J"], inner.dtype(weights))
        return inner.map("mul", _clip(inner, weights, bounds), bounds[2])

    changed = a.softcap is not None or a.band is not None
    settings = {"scale": a.scale, "of_scores": of_scores if changed else None, "of_weights": of_weights}
    return e.standard("modified_attention", a.q, a.k, a.v, **settings)


def block_length(planes: int, queries: int, keys: int) -> int:
    """Return how many queries of each of ``planes`` heads make a block."""
    scores = planes * queries * keys
    count = min(FEW, -(-scores // SMALL_BLOCK))
    count = max(count, min(MANY, -(-scores // LARGE_BLOCK)))
    return min(queries, max(LEAST_ROWS, -(-queries // count)))


def query_blocks(e: Emitter, a: Canonical) -> Iterator[Canonical]:
    """Yield operands of consecutive queries, with the band as a part of the bias.

    Of a known length, the last block may be shorter. Of a dynamic one, the last blocks repeat the last query.
    """
    queries, keys, planes = a.shape["I"].known(), a.shape["J"].known(), a.shape["H"].known()
    if queries is None or keys is None or planes is None:
        count = e.ceil_div(a.shape["I"], DYNAMIC_BLOCKS)
        for at in range(DYNAMIC_BLOCKS):
            yield _repeating(e, a, at, count)
        return
    length = block_length(planes * (a.shape["B"].known() or 1), queries, keys)
    for start in range(0, queries, length):
        yield _cut(e, a, start, min(length, queries - start), keys)


def _cut(e: Emitter, a: Canonical, start: int, count: int, keys: int) -> Canonical:
    """Return the operands of some queries and of the keys that they can see."""
    first, last = _visible(a, start, count, keys)

    def rows(x: Handle | None) -> Handle | None:
        return x if x is None or e.shape(x)[2] == ONE else e.slice(x, 2, start, count)

    def columns(x: Handle | None, axis: int) -> Handle | None:
        return x if x is None or e.shape(x)[axis] == ONE else e.slice(x, axis, first, last - first)

    bias = columns(rows(a.bias), 3)
    if a.band is not None:
        at = e.map("add", e.iota(count), e.constant(start, "int64"))
        behind = e.map("add", e.iota(last - first), e.constant(first, "int64"))
        bias = _with_band(e, a, bias, at, behind)
    part = replace(a, q=rows(a.q), k=columns(a.k, 2), v=columns(a.v, 2), bias=bias, sink=rows(a.sink))
    return replace(part, band=None, shape={**a.shape, "I": Size.of(count), "J": Size.of(last - first)})


def _visible(a: Canonical, start: int, count: int, keys: int) -> tuple[int, int]:
    """Return the range of the keys that a block sees, one at least."""
    first, last = 0, keys
    if a.band is not None and a.band.offset.static:
        at = start + int(a.band.offset)
        if a.band.left is not None:
            first = min(max(0, at - a.band.left), keys - 1)
        if a.band.right is not None:
            last = max(first + 1, min(keys, at + count + a.band.right))
    return first, last


def _repeating(e: Emitter, a: Canonical, block: int, count: Size) -> Canonical:
    """Return the operands of some queries; beyond the last one it is repeated."""
    at = e.map("add", e.iota(count), e.size(count * block))
    at = e.map("minimum", at, e.size(a.shape["I"] - 1))

    def rows(x: Handle | None) -> Handle | None:
        return x if x is None or e.shape(x)[2] == ONE else e.gather(x, at, 2)

    part = replace(a, q=rows(a.q), bias=rows(a.bias), sink=rows(a.sink), shape={**a.shape, "I": count})
    if a.band is None:
        return part
    part = _before(e, part, a.shape["I"], count * (block + 1)) if block + 1 < DYNAMIC_BLOCKS else part
    bias = _with_band(e, a, part.bias, at, e.iota(part.shape["J"]))
    return replace(part, bias=bias, band=None)


def _before(e: Emitter, a: Canonical, queries: Size, end: Size) -> Canonical:
    """Leave out keys that only queries from ``end`` on see, where none sees the last key beyond its band.

    Beyond the last key it is repeated, where the band hides it.
    """
    assert a.band is not None
    keys = a.shape["J"]
    if a.band.right is None or not (keys - queries - a.band.offset - a.band.right).at_least(0):
        return a
    count = end + a.band.offset + a.band.right
    at = e.map("minimum", e.iota(count), e.size(keys - 1))
    bias = a.bias if a.bias is None or e.shape(a.bias)[3] == ONE else e.gather(a.bias, at, 3)
    return replace(
        a, k=e.gather(a.k, at, 2), v=e.gather(a.v, at, 2), bias=bias, shape={**a.shape, "J": count}
    )


def _with_band(e: Emitter, a: Canonical, bias: Handle | None, queries: Handle, keys: Handle) -> Handle:
    assert a.band is not None
    mask = emit_band(e, a.band, queries, keys, e.dtype(a.q))
    mask = e.reshape(mask, (ONE, ONE, *e.shape(mask)))
    return mask if bias is None else e.map("add", bias, mask)


def _attend(e: Emitter, a: Canonical, stretch: Stretch, keys: Size) -> Handle:
    """Emit one block; ``keys`` is the number of keys of the site."""
    k, v, bias, empty = a.k, a.v, a.bias, None
    if a.sink is not None:
        k, v, bias = with_sinks(e, k, v, bias, a.sink)
    elif bias is not None and a.empty_row != "never":
        # the gradient of a row of -inf is NaN: it is given scores, and no weights
        zero = e.constant(0.0, e.dtype(bias))
        empty = e.map("eq", e.reduce("max", bias, 3), e.constant(-math.inf, e.dtype(bias)))
        bias = e.map("where", empty, zero, bias)
    bounds = _bounds(e, stretch, keys, e.dtype(a.q))

    def weigh(scores: Handle) -> Handle:
        return _clip(e, e.softmax(scores, 3), bounds)

    result = e.map("mul", spelled_out(e, a.q, k, v, a.scale, bias, a.softcap, weigh), bounds[2])
    return result if empty is None else e.map("where", empty, e.constant(0.0, e.dtype(result)), result)


def _clip(e: Emitter, weights: Handle, bounds: tuple[Handle, Handle | None, Handle]) -> Handle:
    """Emit the clipped weights by the factor; see `_bounds`."""
    low, high, _ = bounds
    weights = e.map("relu", e.map("sub", weights, low))
    return weights if high is None else e.map("minimum", weights, high)


def _bounds(e: Emitter, stretch: Stretch, keys: Size, dtype: str) -> tuple[Handle, Handle | None, Handle]:
    """Return what is taken off a weight, what is left at most (None: it cannot be more), and the factor.

    The clip is ``factor · min(max(w - low, 0), high)``: one operation less per score.
    """
    low: Handle
    if not stretch.alpha or keys.static:
        gamma = stretch.gamma - (stretch.alpha / int(keys) if stretch.alpha else 0.0)
        factor = stretch.zeta - gamma
        low, high, times = (e.constant(number, dtype) for number in (-gamma / factor, 1 / factor, factor))
    else:
        wide = dtype if dtype == "float64" else "float32"
        alpha, zeta = e.constant(stretch.alpha, wide), e.constant(stretch.zeta, wide)
        more = e.map("div", alpha, e.size(keys, wide))
        gamma = e.map("sub", e.constant(stretch.gamma, wide), more)
        factor = e.map("sub", zeta, gamma)
        low, high = e.map("neg", e.map("div", gamma, factor)), e.map("reciprocal", factor)
        low, high, times = (e.map("cast", x, dtype=dtype) for x in (low, high, factor))
    return low, high if stretch.zeta > 1 else None, times
