"""How sums over keys of ``φ(q) · φ(k) v`` are emitted: keys and values first, or in chunks, or densely."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import numpy as np

from rewriter.algebra.sizes import ONE, ZERO, Size
from rewriter.forms import Canonical
from rewriter.kernels.linear.features import FeatureMap, Identity, Taylor
from rewriter.lower.attention import group_size
from rewriter.lower.emitter import Emitter, Handle, KernelEmitter
from rewriter.sites.site import AttentionSite, Band

__all__ = [
    "Tokens",
    "chunk_length",
    "emit_quotient",
    "emit_sums",
    "emit_wide",
    "multiplications",
    "order_of",
    "sizes_of",
]

ANY_CHUNK = 128
"""Chunk where the length is not known."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """What the sums run over.

    Parameters
    ----------
    q, k
        Prepared by the map: ``[B, H, I, D]`` and ``[B, G, J, D]``.
    v
        ``[B, G, J, E]``.
    band
        Causal with any offset, or None.
    map
        Makes features of q and k.
    weight
        Factor of each key, ``[B or 1, G or 1, J, 1]``, or None.
    """

    q: Handle
    k: Handle
    v: Handle
    band: Band | None
    map: FeatureMap
    weight: Handle | None = None


def emit_wide(e: Emitter, a: Canonical, emit: Callable[[Emitter, Canonical], Handle]) -> Handle:
    """Emit in single precision what is in half precision: sums over tokens leave its range."""
    dtype = e.dtype(a.q)
    if dtype not in ("float16", "bfloat16"):
        return emit(e, a)
    q, k, v, bias = (x if x is None else e.map("cast", x, dtype="float32") for x in (a.q, a.k, a.v, a.bias))
    return e.map("cast", emit(e, replace(a, q=q, k=k, v=v, bias=bias)), dtype=dtype)


def emit_quotient(e: Emitter, x: Tokens) -> Handle:
    """Emit ``sum of φ(q) · φ(k) w v / sum of φ(q) · φ(k) w``, 0 where the divisor is 0; ``[B, H, I, E]``."""
    sums, total = _sums_and_totals(e, x)
    none = e.map("eq", total, e.constant(0.0, e.dtype(total)))
    total = e.map("where", none, e.constant(np.inf, e.dtype(total)), total)
    return e.map("div", sums, total)


def _sums_and_totals(e: Emitter, x: Tokens) -> tuple[Handle, Handle]:
    """Emit the sums ``[B, H, I, E]`` and the sums of the weights ``[B, H, I, 1]``."""
    if order_of(_sizes(e, x), x.band) == "factored":
        # apart: one more column makes products slow and is to be taken off again
        x = replace(x, q=x.map.expand(e, x.q), k=x.map.expand(e, x.k), map=Identity())
        return _factored(e, _weighted(e, x), _state), _factored(e, x, _totals)
    sums, width = emit_sums(e, x, counted=True), e.shape(x.v)[3]
    return e.slice(sums, 3, 0, width), e.slice(sums, 3, width, ONE)


def emit_sums(e: Emitter, x: Tokens, counted: bool = False) -> Handle:
    """Emit ``sum of φ(q) · φ(k) w v`` in the order that takes the fewest multiplications.

    Returns
    -------
    Handle
        ``[B, H, I, E]``; with ``counted`` one more column, the sum of the weights.
    """
    sizes = _sizes(e, x)
    order = order_of(sizes, x.band)
    x = _weighted(e, x)
    if order == "dense":
        return _dense(e, x, counted)
    if order == "factored":
        return _factored(e, x, partial(_state, counted=counted))
    if (found := _by_one_operator(e, x, counted)) is not None:
        return found
    if e.target == "triton" and not isinstance(x.map, Taylor):  # its features fill no tile
        return _scanned(cast("KernelEmitter", e), x, sizes, counted)
    return _chunked(e, x, sizes, counted)


def order_of(sizes: dict[str, Size], band: Band | None) -> str:
    """Return ``dense``, ``factored`` or ``chunked``.

    ``(φ(q) φ(k)ᵀ) v``, ``φ(q) (φ(k)ᵀ v)``, or both in turns where a query sees the keys before it only. An
    unknown length counts as long.

    Parameters
    ----------
    sizes
        ``B H G I J D E F``; ``F`` is the number of features.
    band
        As in `Tokens`.
    """
    summed = "factored" if band is None else "chunked"
    dense, sums = (multiplications(sizes, way).known() for way in ("dense", summed))
    return "dense" if dense is not None and sums is not None and dense <= sums else summed


def multiplications(sizes: dict[str, Size], order: str) -> Size:
    """Return how many multiplications the products of an order take; see `order_of`."""
    b, h, g, i, j, d, e, f = (sizes[letter] for letter in "BHGIJDEF")
    if order == "dense":
        return b * h * i * j * (d + e)
    both = b * (g * j + h * i) * f * e
    if order == "factored":
        return both
    chunk = chunk_length(i.known(), f.known(), e.known())
    count = -(-(i.known() or 0) // chunk)
    return both + b * g * f * e * count * count + b * h * i * chunk * (d + e)


def chunk_length(queries: int | None, features: int | None, values: int | None) -> int:
    """Return how many queries are one chunk: within it scores are computed, between chunks sums.

    Long chunks take more scores, short ones more sums of what came before.
    """
    if queries is None or features is None or values is None:
        return ANY_CHUNK

    def price(chunk: int) -> int:
        count = -(-queries // chunk)
        return queries * chunk * (features + values) + count * count * features * values

    return min((32, 64, 128, 256), key=price)


def sizes_of(site: AttentionSite, features: Size) -> dict[str, Size]:
    """Return what `order_of` decides by."""
    named = (site.batch, site.heads, site.kv_heads, site.queries, site.keys, site.qk_dim, site.v_dim)
    return dict(zip("BHGIJDEF", (*named, features), strict=True))


def _sizes(e: Emitter, x: Tokens) -> dict[str, Size]:
    (b, h, i, d), (_, g, j, v) = e.shape(x.q), e.shape(x.v)
    return {**dict(zip("BHGIJDE", (b, h, g, i, j, d, v), strict=True)), "F": x.map.size(d)}


def _dense(e: Emitter, x: Tokens, counted: bool) -> Handle:
    batch, heads, queries, width = e.shape(x.q)
    groups, keys, values = e.shape(x.v)[1:]
    rows = group_size(e, x.q, x.k) * queries
    q = e.reshape(x.q, (batch, groups, rows, width))
    weights = x.map.weigh(e, e.matmul(q, e.permute(x.k, (0, 1, 3, 2))))
    if x.band is not None:
        seen = _seen(e, e.iota(queries), e.iota(keys), x.band.offset, e.dtype(weights))
        weights = e.map("mul", e.reshape(weights, (batch, heads, queries, keys)), seen)
        weights = e.reshape(weights, (batch, groups, rows, keys))
    found = e.matmul(weights, x.v)
    if counted:
        total = e.reduce("sum", weights, 3) if x.weight is None else e.matmul(weights, _weights(e, x))
        found = e.concat([found, total], 3)
    return e.reshape(found, (batch, heads, queries, values + int(counted)))


def _weighted(e: Emitter, x: Tokens) -> Tokens:
    return x if x.weight is None else replace(x, v=e.map("mul", x.v, x.weight))


def _state(e: Emitter, x: Tokens, counted: bool = False) -> Handle:
    """Emit what a query needs to know of all keys: ``sum of φ(k) w v`` and ``sum of φ(k) w``.

    Axes before the last two of keys and values are kept: ``[…, F, E]``.
    """
    k, last = x.map.expand(e, x.k), len(e.shape(x.k)) - 1
    state = e.matmul(e.permute(k, (*range(last - 1), last, last - 1)), x.v)
    return e.concat([state, _totals(e, x)], last) if counted else state


def _totals(e: Emitter, x: Tokens) -> Handle:
    """Emit ``sum of φ(k) w``, ``[…, F, 1]``."""
    k, last = x.map.expand(e, x.k), len(e.shape(x.k)) - 1
    order = (*range(last - 1), last, last - 1)
    if x.weight is None:
        return e.permute(e.reduce("sum", k, last - 1), order)
    return e.matmul(e.permute(k, order), _weights(e, x))


def _factored(e: Emitter, x: Tokens, state: Callable[[Emitter, Tokens], Handle]) -> Handle:
    """Emit the product of the features of the queries and the state, ``[B, H, I, …]``."""
    batch, heads, queries, width = e.shape(x.q)
    rows = group_size(e, x.q, x.k) * queries
    q = x.map.expand(e, e.reshape(x.q, (batch, e.shape(x.v)[1], rows, width)))
    known = state(e, x)
    return e.reshape(e.matmul(q, known), (batch, heads, queries, e.shape(known)[3]))


def _weights(e: Emitter, x: Tokens) -> Handle:
    shape = (*e.shape(x.v)[:-1], ONE)
    return x.weight if e.shape(x.weight) == shape else e.expand(x.weight, shape)


def _by_one_operator(e: Emitter, x: Tokens, counted: bool) -> Handle | None:
    """Emit causal sums by the operator that the target has for them; None, and nothing, where it has none."""
    assert x.band is not None
    if x.band.offset != ZERO or isinstance(x.map, Taylor):  # its features are not what is prepared
        return None
    found = e.standard("causal_sums", x.q, x.k, x.v)
    if found is None or not counted:
        return found
    return e.concat([found, e.standard("causal_sums", x.q, x.k, _column(e, x))], 3)


def _column(e: Emitter, x: Tokens) -> Handle:
    """Emit the weights of all keys, ``[B, G, J, 1]``."""
    ones = e.expand(e.constant(1.0, e.dtype(x.v)), (ONE, ONE, ONE, ONE)) if x.weight is None else x.weight
    return e.expand(ones, (*e.shape(x.v)[:3], ONE))


def _scanned(e: KernelEmitter, x: Tokens, sizes: dict[str, Size], counted: bool) -> Handle:
    """Emit the fused kernel of causal sums."""
    assert x.band is not None
    v = e.concat([x.v, _column(e, x)], 3) if counted else x.v
    shape = [sizes["B"], sizes["H"], sizes["I"], e.shape(v)[3]]
    return e.kernel("scan", (x.q, x.k, v, None), {"offset": x.band.offset}, shape)


def _chunked(e: Emitter, x: Tokens, sizes: dict[str, Size], counted: bool) -> Handle:
    """Emit chunks of queries: scores with the keys of their own chunk, the state of all keys before it."""
    assert x.band is not None
    queries, offset = sizes["I"], x.band.offset
    length = chunk_length(queries.known(), sizes["F"].known(), sizes["E"].known())
    count = e.ceil_div(queries, length)
    first = _keys(e, x, ZERO, offset) if offset != ZERO else None
    own = _keys(e, x, offset, queries)

    def chunks(t: Handle) -> Handle:
        batch, heads, _, width = e.shape(t)
        padded = count * length
        t = t if padded == queries else e.pad(t, 2, 0, padded - queries)
        return e.reshape(t, (batch, heads, count, length, width))

    if counted and own.weight is None and count * length != queries:
        # what is padded may have features, so it must have no weight
        ones = e.expand(e.constant(1.0, e.dtype(x.v)), (ONE, ONE, queries, ONE))
        own = replace(own, weight=ones)
    weight = None if own.weight is None else chunks(own.weight)
    cut = replace(own, k=chunks(own.k), v=chunks(own.v), weight=weight)
    before = _before(e, _state(e, cut, counted), None if first is None else _state(e, first, counted))
    batch, groups, shared = sizes["B"], sizes["G"], group_size(e, x.q, x.k)
    rows = shared * length
    q = e.reshape(chunks(x.q), (batch, groups, shared, count, length, sizes["D"]))
    q = e.reshape(e.permute(q, (0, 1, 3, 2, 4, 5)), (batch, groups, count, rows, sizes["D"]))
    found = e.matmul(x.map.expand(e, q), before)
    found = e.map("add", found, _within(e, cut, q, length, counted))
    columns = sizes["E"] + int(counted)
    found = e.permute(e.reshape(found, (batch, groups, count, shared, length, columns)), (0, 1, 3, 2, 4, 5))
    found = e.reshape(found, (batch, sizes["H"], count * length, columns))
    return found if count * length == queries else e.slice(found, 2, 0, queries)


def _keys(e: Emitter, x: Tokens, start: Size, size: Size) -> Tokens:
    def taken(t: Handle) -> Handle:
        return e.slice(t, 2, start, size)

    weight = None if x.weight is None else taken(x.weight)
    return replace(x, k=taken(x.k), v=taken(x.v), weight=weight)


def _before(e: Emitter, states: Handle, first: Handle | None) -> Handle:
    """Emit for each chunk ``[B, G, M, F, E]`` the sum of the states of the chunks before it."""
    batch, groups, count, features, values = e.shape(states)
    at = e.iota(count)
    earlier = e.map("lt", e.reshape(at, (ONE, count)), e.reshape(at, (count, ONE)))
    triangle = e.map("cast", earlier, dtype=e.dtype(states))
    flat = e.reshape(states, (batch, groups, count, features * values))
    total = e.reshape(e.matmul(triangle, flat), (batch, groups, count, features, values))
    if first is None:
        return total
    return e.map("add", total, e.reshape(first, (batch, groups, ONE, features, values)))


def _within(e: Emitter, x: Tokens, q: Handle, length: int, counted: bool) -> Handle:
    """Emit sums over the keys of each chunk up to the query's own, ``[B, G, M, R, E]``."""
    weights = x.map.weigh(e, e.matmul(q, e.permute(x.k, (0, 1, 2, 4, 3))))
    shared = int(e.shape(q)[3]) // length
    seen = np.tile(np.tri(length), (shared, 1))
    weights = e.map("mul", weights, e.constant(seen, e.dtype(weights)))
    found = e.matmul(weights, x.v)
    if not counted:
        return found
    total = e.reduce("sum", weights, 4) if x.weight is None else e.matmul(weights, _weights(e, x))
    return e.concat([found, total], 4)


def _seen(e: Emitter, rows: Handle, columns: Handle, offset: Size, dtype: str) -> Handle:
    """Emit 1 where key ``j <= i + offset``, else 0; ``[I, J]``."""
    at = rows if offset == ZERO else e.map("add", rows, e.size(offset))
    at = e.reshape(at, (*e.shape(rows), ONE))
    return e.map("cast", e.map("le", columns, at), dtype=dtype)
