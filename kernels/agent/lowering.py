"""How agents are emitted: landmarks of the queries, and two calls of attention."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np

from rewriter.algebra.sizes import ONE, Size
from rewriter.forms import Canonical
from rewriter.kernels.agent.fitted import Fitted, emit_convolution
from rewriter.kernels.agent.landmarks import FAINT, MOVES, NEARNESS, PRIOR, Landmarks, bins, middles
from rewriter.kernels.softmax.lowering import emit_dense
from rewriter.lower.emitter import Emitter, Handle, KernelEmitter
from rewriter.lower.heads import for_every_head

__all__ = [
    "by_keys",
    "emit_agents",
    "emit_first_rows",
    "emit_gathered",
    "emit_landmarks",
    "emit_shown",
    "emit_two_stages",
]


def emit_agents(
    e: Emitter,
    a: Canonical,
    landmarks: Landmarks,
    sharpness: float,
    shortcut: float,
    fitted: Fitted | None = None,
    clustered: bool = False,
) -> Handle:
    """Emit agent attention; ``[B, H, I, E]``.

    Agents are landmarks of the queries, or fitted; ``clustered`` moves them to the queries around them.
    """
    a, fitted = by_keys(e, a), fitted or Fitted()
    if fitted.agents is None:
        agents = emit_landmarks(e, a.q, landmarks, emit_shown(e, a))
    else:
        shape = (a.shape["B"], *fitted.agents.shape)
        agents = e.expand(e.constant(fitted.agents[None], e.dtype(a.q)), shape)
    if clustered:
        agents = _emit_clustered(e, a, agents, landmarks.protect)
    added = None
    if fitted.convolution is not None:
        sides = None if landmarks.grid is None else landmarks.sides(int(a.shape["J"]))
        added = emit_convolution(e, a, fitted.convolution, landmarks.protect, sides)
    of_keys, of_queries = (
        None if x is None else e.constant(x[None], e.dtype(a.q)) for x in (fitted.keys, fitted.queries)
    )
    protect = landmarks.protect
    return emit_two_stages(e, a, agents, protect, sharpness, shortcut, of_keys, of_queries, added)


def _emit_clustered(e: Emitter, a: Canonical, agents: Handle, protect: int) -> Handle:
    """Emit agents ``[B, H, n, D]`` that are moved to the middle of the queries that are nearest to them.

    See `rewriter.kernels.agent.definition.clustered`.
    """
    b, h, n, _ = e.shape(agents)
    queries, dtype = a.shape["I"], e.dtype(a.q)
    wide = dtype if dtype == "float64" else "float32"
    x, agents = (e.map("cast", part, dtype=wide) for part in (a.q, agents))
    _, _, kept = _places(e, protect, queries, emit_shown(e, a))
    kept = e.map("cast", kept, dtype=wide)
    prior, half = e.constant(PRIOR, wide), e.constant(0.5, wide)
    for _ in range(MOVES):
        offset = e.map("mul", e.reduce("sum", e.map("mul", agents, agents), 3), half)
        scores = e.map("sub", e.matmul(x, e.permute(agents, (0, 1, 3, 2))), e.reshape(offset, (b, h, ONE, n)))
        near = e.softmax(e.map("mul", scores, e.constant(NEARNESS * abs(a.scale), wide)), 3)
        share = e.map("mul", e.permute(near, (0, 1, 3, 2)), kept)
        total = e.reshape(e.reduce("sum", share, 3), (b, h, n, ONE))
        sums = e.map("add", e.matmul(share, x), e.map("mul", agents, prior))
        agents = e.map("div", sums, e.map("add", total, prior))
    return e.map("cast", agents, dtype=dtype)


def by_keys(e: Emitter, a: Canonical) -> Canonical:
    """Return the operands with one row of a bias that is proved to depend on keys only; empty rows give 0."""
    if a.bias is None:
        return replace(a, empty_row="never")
    return replace(a, bias=e.slice(a.bias, 2, 0, 1), empty_row="zero")


def emit_two_stages(
    e: Emitter,
    a: Canonical,
    agents: Handle,
    protect: int,
    sharpness: float,
    shortcut: float,
    of_keys: Handle | None = None,
    of_queries: Handle | None = None,
    added: Handle | None = None,
) -> Handle:
    """Emit agent attention through given agents ``[B, H, n, D]``; ``[B, H, I, E]``.

    Biases of both softmaxes, ``[1, H, n, J]`` and ``[1, H, I, n]``, and what is added to the result, or None.
    """
    first, gathered = emit_gathered(e, a, agents, protect, of_keys)
    result = e.attention(a.q, agents, gathered, scale=a.scale * sharpness, bias=of_queries)
    if shortcut:
        own = for_every_head(e, a.v, a.shape["B"], a.shape["H"], a.shape["G"])
        result = e.map("add", result, e.map("mul", own, e.constant(shortcut, e.dtype(own))))
    if added is not None:
        result = e.map("add", result, added)
    return emit_first_rows(e, first, result)


def emit_gathered(
    e: Emitter, a: Canonical, landmarks: Handle, protect: int, of_keys: Handle | None = None
) -> tuple[Handle | None, Handle]:
    """Emit attention of the first queries ``[B, H, protect, E]``, if any, and of landmarks ``[B, H, n, E]``.

    One call computes both. Where there are fewer queries, the last one is repeated. ``of_keys`` is added to
    the scores of the landmarks.
    """
    if not protect:
        return None, _attend(e, a, landmarks, of_keys)
    if (a.shape["I"] - protect).at_least(0):
        first = e.slice(a.q, 2, 0, protect)
    else:
        first = e.gather(a.q, e.map("minimum", e.iota(protect), e.size(a.shape["I"] - 1)), 2)
    of_keys = of_keys if of_keys is None else e.pad(of_keys, 2, protect, 0)
    both = _attend(e, a, e.concat([first, landmarks], 2), of_keys)
    return e.slice(both, 2, 0, protect), e.slice(both, 2, protect, e.shape(landmarks)[2])


def _attend(e: Emitter, a: Canonical, few: Handle, added: Handle | None = None) -> Handle:
    """Emit attention of a few queries, where there are kernels by one that shares the keys among programs."""
    if added is not None:
        bias = added if a.bias is None else e.map("add", a.bias, added)
        return emit_dense(e, replace(a, q=few, bias=bias))
    if e.target != "triton":
        return emit_dense(e, replace(a, q=few))
    shape = (a.shape["B"], a.shape["H"], e.shape(few)[2], a.shape["E"])
    kernels = cast("KernelEmitter", e)
    return kernels.kernel("gathered", (few, a.k, a.v, a.bias), {"scale": a.scale}, shape)


def emit_first_rows(e: Emitter, first: Handle | None, result: Handle) -> Handle:
    """Emit the result ``[B, H, I, E]`` with its first rows replaced, as far as there are so many."""
    if first is None:
        return result
    count, queries = e.shape(first)[2], e.shape(result)[2]
    if (queries - count).at_least(0):
        return e.concat([first, e.slice(result, 2, count, queries - count)], 2)
    rest = e.slice(e.pad(result, 2, 0, count), 2, count, queries)
    return e.slice(e.concat([first, rest], 2), 2, 0, queries)


def emit_shown(e: Emitter, a: Canonical) -> Handle | None:
    """Emit which tokens the bias by keys does not hide, ``[B, h, 1, J]``; None where it hides no queries."""
    if a.bias is None or a.shape["I"] != a.shape["J"]:
        return None
    least = e.map("sub", e.reduce("max", a.bias, 3), e.constant(FAINT, e.dtype(a.bias)))
    return e.map("ge", a.bias, least)


def emit_landmarks(e: Emitter, x: Handle, landmarks: Landmarks, shown: Handle | None) -> Handle:
    """Emit landmarks of tokens ``[B, H, N, D]``; ``[B, H, count, D]``.

    Parameters
    ----------
    e
        Target.
    x
        Tokens.
    landmarks
        How they are chosen.
    shown
        Booleans ``[B, h, 1, N]``: other tokens are left out of the sequence. None for all.
    """
    tokens = e.shape(x)[2]
    if landmarks.grid is not None:
        sides = landmarks.sides(int(tokens))
        assert sides is not None, "why_not has said so"
        on_grid = _strided_on_grid if landmarks.pool == "stride" else _means_on_grid
        return on_grid(e, x, landmarks, sides)
    if shown is None and landmarks.pool == "stride":
        return e.gather(x, _middles(e, landmarks, tokens), 2)
    return e.matmul(_shares(e, landmarks, tokens, shown, e.dtype(x)), x)


def _strided_on_grid(e: Emitter, x: Handle, landmarks: Landmarks, sides: tuple[int, int]) -> Handle:
    rows, columns = (np.array(middles(landmarks.side, n)) for n in sides)
    at = landmarks.protect + rows[:, None] * sides[1] + columns
    return e.gather(x, e.constant(at.ravel(), "int64"), 2)


def _means_on_grid(e: Emitter, x: Handle, landmarks: Landmarks, sides: tuple[int, int]) -> Handle:
    """Emit the means of rectangles: first over rows, then over columns."""
    batch, heads, _, width = e.shape(x)
    (high, wide), side, dtype = sides, landmarks.side, e.dtype(x)
    body = e.slice(x, 2, landmarks.protect, high * wide) if landmarks.protect else x
    body = e.reshape(body, (batch, heads, high, wide * width))
    body = e.matmul(e.constant(_means(side, high), dtype), body)
    body = e.reshape(body, (batch, heads, side, wide, width))
    return e.reshape(
        e.matmul(e.constant(_means(side, wide), dtype), body), (batch, heads, side * side, width)
    )


def _means(count: int, tokens: int) -> np.ndarray:
    shares = np.zeros((count, tokens))
    for i, (start, end) in enumerate(bins(count, tokens)):
        shares[i, start:end] = 1 / (end - start)
    return shares


def _middles(e: Emitter, landmarks: Landmarks, tokens: Size) -> Handle:
    """Emit the middle of each part of a sequence; its last token where all are protected."""
    body = tokens.known()
    if body is not None:
        at = landmarks.protect + np.array(middles(landmarks.count, body - landmarks.protect))
        return e.constant(at, "int64")
    at = e.map("add", _middle(e, landmarks, e.size(tokens - landmarks.protect)), _int(e, landmarks.protect))
    return e.map("maximum", e.map("minimum", at, e.size(tokens - 1)), _int(e, 0))


def _middle(e: Emitter, landmarks: Landmarks, total: Handle) -> Handle:
    """Emit ``(2 i + 1) total // (2 count)`` for every landmark."""
    odd = e.constant(2 * np.arange(landmarks.count) + 1, "int64")
    return e.map("floordiv", e.map("mul", odd, total), _int(e, 2 * landmarks.count))


def _shares(e: Emitter, landmarks: Landmarks, tokens: Size, shown: Handle | None, dtype: str) -> Handle:
    """Emit the share of every token in every landmark, ``[…, count, N]``; 0 for what is left out."""
    place, total, kept = _places(e, landmarks.protect, tokens, shown)
    count = landmarks.count
    if landmarks.pool == "stride":
        wanted = e.reshape(_middle(e, landmarks, total), (*e.shape(total)[:-2], count, ONE))
        return e.map("cast", e.map("and", e.map("eq", place, wanted), kept), dtype=dtype)
    first = e.constant(np.arange(count)[:, None], "int64")
    start = e.map("floordiv", e.map("mul", first, total), _int(e, count))
    above = e.map("add", e.map("mul", e.map("add", first, _int(e, 1)), total), _int(e, count - 1))
    end = e.map("floordiv", above, _int(e, count))
    inside = e.map("and", e.map("and", e.map("ge", place, start), e.map("lt", place, end)), kept)
    number = e.map("maximum", e.map("sub", end, start), _int(e, 1))
    return e.map("div", e.map("cast", inside, dtype=dtype), e.map("cast", number, dtype=dtype))


def _places(e: Emitter, protect: int, tokens: Size, shown: Handle | None) -> tuple[Handle, Handle, Handle]:
    """Emit the place of every token in the sequence, ``[…, 1, N]``, its length, and what belongs to it."""
    at = e.reshape(
        e.map("sub", e.iota(tokens), _int(e, protect)) if protect else e.iota(tokens), (ONE, tokens)
    )
    kept = e.map("ge", at, _int(e, 0))
    if shown is None:
        return at, e.reshape(e.size(tokens - protect), (ONE, ONE)), kept
    kept = e.map("and", shown, kept)
    # what is kept comes first, in order; the order of an order is the place of each
    order = e.argsort(e.map("cast", kept, dtype="float32"), 3)
    place = e.argsort(e.map("neg", e.map("cast", order, dtype="float32")), 3)
    return place, e.reduce("sum", e.map("cast", kept, dtype="int64"), 3), kept


def _int(e: Emitter, value: int) -> Handle:
    return e.constant(value, "int64")
