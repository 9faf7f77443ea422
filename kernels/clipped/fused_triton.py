"""Clipped softmax in tiles: forward and backward kernels of two passes over the keys.

The clip needs the sum of a whole row, so that the scores of each tile are computed twice: first for the
logarithm of the sum of exponentials of each row, then for the clipped weights and their product with the
values. The backward kernel of the queries takes two passes, too: the gradient of a score needs the mean over
its row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from rewriter.kernels.softmax.fused_triton import launch, pointer, strides_of
from rewriter.kernels.softmax.tiles_triton import (
    Seen,
    load_columns,
    load_rows,
    masked_scores,
    product,
    store_rows,
    tile_met,
    tiles_met,
    tokens_of,
)

__all__ = ["backward", "forward"]


@triton.jit
def _stretched(s, lse, zeta, gamma):
    """Return the weights of the softmax, and what they are stretched to."""
    w = tl.exp(s - lse[:, None])
    return w, (zeta - gamma) * w + gamma


@triton.jit
def _cut(stretched):
    """Return what is left between 0 and 1; NaN stays."""
    return tl.where(stretched < 0, 0.0, tl.where(stretched > 1, 1.0, stretched))


@triton.jit
def _of_weights(grad, v, stretched, zeta, gamma, WIDEN: tl.constexpr):
    """Return the gradient of the weights of the softmax: none where they are cut off."""
    zero = tl.zeros([grad.shape[0], v.shape[1]], tl.float32)
    of_clipped = product(grad, v, zero, WIDEN)
    return tl.where((stretched >= 0) & (stretched <= 1), (zeta - gamma) * of_clipped, 0.0)


@triton.jit
def _forward(
    Q, K, V, BIAS, SINK, OUT, LSE, TABLE,
    sq, sk, sv, sb, ss, so, sizes, place, scale, cap, zeta, gamma,
    FLAGS: tl.constexpr, CAP: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SINK: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, V_WIDTH: tl.constexpr,
):  # fmt: skip
    H, share, queries, keys = sizes[0], sizes[1], sizes[2], sizes[3]
    D, E, tiles = sizes[4], sizes[5], sizes[6]
    M: tl.constexpr = ROWS[0] * ROWS[1] * ROWS[2]
    tile = tl.program_id(0) % tiles
    b, h = (tl.program_id(0) // tiles // H).to(tl.int64), tl.program_id(0) // tiles % H
    g = (h // share).to(tl.int64)
    h = h.to(tl.int64)
    K += b * sk[0] + g * sk[1]
    V += b * sv[0] + g * sv[1]
    BIAS += b * sb[0] + h * sb[1]
    lead = place[5]
    i, i_real = tokens_of(tile, queries, lead, place[6], FLAGS[5], ROWS)
    q = load_rows(Q + b * sq[0] + h * sq[1], sq, i, i_real, D, WIDTH)
    top = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    if HAS_SINK:
        top = tl.load(SINK + b * ss[0] + h * ss[1] + i.to(tl.int64) * ss[2], mask=i_real, other=0.0)
        total = tl.where(top == float("-inf"), 0.0, 1.0)
    leading, x0, nx, y0, ny, z0, nz = tiles_met(
        tile, queries, keys, place[0], 0, place[1], place[2], place[3], place[4], lead, place[6], TABLE,
        FLAGS[0], FLAGS[1], FLAGS[2], FLAGS[3], FLAGS[4], FLAGS[5], ROWS, KEYS,
    )  # fmt: skip
    for step in range(0, leading + nx * ny * nz):
        at = tile_met(step, leading, x0, nx, y0, ny, z0, lead, place[6], FLAGS[5], KEYS)
        j, j_real = tokens_of(at, keys, lead, place[6], FLAGS[5], KEYS)
        k = load_columns(K, sk, j, j_real, D, WIDTH)
        real = i_real[:, None] & j_real[None, :]
        s, _ = masked_scores(
            q, k, i, j, real, scale, cap, BIAS, sb, place, TABLE, FLAGS, CAP, HAS_BIAS, WIDEN
        )
        higher = tl.maximum(top, tl.max(s, 1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(top - safe) + tl.sum(tl.exp(s - safe[:, None]), 1)
        top = higher
    empty = total == 0
    lse = tl.where(empty, float("inf"), top + tl.log(tl.where(empty, 1.0, total)))
    out = tl.zeros([M, V_WIDTH], tl.float32)
    for step in range(0, leading + nx * ny * nz):
        at = tile_met(step, leading, x0, nx, y0, ny, z0, lead, place[6], FLAGS[5], KEYS)
        j, j_real = tokens_of(at, keys, lead, place[6], FLAGS[5], KEYS)
        k = load_columns(K, sk, j, j_real, D, WIDTH)
        real = i_real[:, None] & j_real[None, :]
        s, _ = masked_scores(
            q, k, i, j, real, scale, cap, BIAS, sb, place, TABLE, FLAGS, CAP, HAS_BIAS, WIDEN
        )
        _, stretched = _stretched(s, lse, zeta, gamma)
        v = load_rows(V, sv, j, j_real, E, V_WIDTH)
        clipped = _cut(stretched)
        out = product(clipped.to(v.dtype), v, out, WIDEN)
    store_rows(OUT + b * so[0] + h * so[1], so, i, i_real, E, out, V_WIDTH)
    tl.store(LSE + (b * H + h) * queries + i, lse, mask=i_real)


@triton.jit
def _of_queries(
    Q, K, V, BIAS, GRAD, LSE, DELTA, DQ, DBIAS, TABLE,
    sq, sk, sv, sb, sg, sd, sizes, place, scale, cap, zeta, gamma,
    FLAGS: tl.constexpr, CAP: tl.constexpr, HAS_BIAS: tl.constexpr, WANT_BIAS: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, V_WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of queries, of the bias there, and the mean of each row for `_of_keys`."""
    H, share, queries, keys = sizes[0], sizes[1], sizes[2], sizes[3]
    D, E, tiles = sizes[4], sizes[5], sizes[6]
    M: tl.constexpr = ROWS[0] * ROWS[1] * ROWS[2]
    tile = tl.program_id(0) % tiles
    b, h = (tl.program_id(0) // tiles // H).to(tl.int64), tl.program_id(0) // tiles % H
    g = (h // share).to(tl.int64)
    h = h.to(tl.int64)
    K += b * sk[0] + g * sk[1]
    V += b * sv[0] + g * sv[1]
    BIAS += b * sb[0] + h * sb[1]
    lead = place[5]
    i, i_real = tokens_of(tile, queries, lead, place[6], FLAGS[5], ROWS)
    q = load_rows(Q + b * sq[0] + h * sq[1], sq, i, i_real, D, WIDTH)
    grad = load_rows(GRAD + b * sg[0] + h * sg[1], sg, i, i_real, E, V_WIDTH)
    row = (b * H + h) * queries + i
    lse = tl.load(LSE + row, mask=i_real, other=float("inf"))
    leading, x0, nx, y0, ny, z0, nz = tiles_met(
        tile, queries, keys, place[0], 0, place[1], place[2], place[3], place[4], lead, place[6], TABLE,
        FLAGS[0], FLAGS[1], FLAGS[2], FLAGS[3], FLAGS[4], FLAGS[5], ROWS, KEYS,
    )  # fmt: skip
    delta = tl.zeros([M], tl.float32)
    for step in range(0, leading + nx * ny * nz):
        at = tile_met(step, leading, x0, nx, y0, ny, z0, lead, place[6], FLAGS[5], KEYS)
        j, j_real = tokens_of(at, keys, lead, place[6], FLAGS[5], KEYS)
        k = load_columns(K, sk, j, j_real, D, WIDTH)
        v = load_columns(V, sv, j, j_real, E, V_WIDTH)
        real = i_real[:, None] & j_real[None, :]
        s, _ = masked_scores(
            q, k, i, j, real, scale, cap, BIAS, sb, place, TABLE, FLAGS, CAP, HAS_BIAS, WIDEN
        )
        w, stretched = _stretched(s, lse, zeta, gamma)
        delta += tl.sum(w * _of_weights(grad, v, stretched, zeta, gamma, WIDEN), 1)
    tl.store(DELTA + row, delta, mask=i_real)
    dq = tl.zeros([M, WIDTH], tl.float32)
    for step in range(0, leading + nx * ny * nz):
        at = tile_met(step, leading, x0, nx, y0, ny, z0, lead, place[6], FLAGS[5], KEYS)
        j, j_real = tokens_of(at, keys, lead, place[6], FLAGS[5], KEYS)
        k = load_columns(K, sk, j, j_real, D, WIDTH)
        v = load_columns(V, sv, j, j_real, E, V_WIDTH)
        real = i_real[:, None] & j_real[None, :]
        s, slope = masked_scores(
            q, k, i, j, real, scale, cap, BIAS, sb, place, TABLE, FLAGS, CAP, HAS_BIAS, WIDEN
        )
        w, stretched = _stretched(s, lse, zeta, gamma)
        ds = w * (_of_weights(grad, v, stretched, zeta, gamma, WIDEN) - delta[:, None])
        if WANT_BIAS:
            tl.store(DBIAS + row[:, None] * keys + j[None, :], ds, mask=real)
        dq = product((ds * slope).to(k.dtype), tl.trans(k), dq, WIDEN)
    store_rows(DQ + b * sd[0] + h * sd[1], sd, i, i_real, D, dq * scale, WIDTH)


@triton.jit
def _of_keys(
    Q, K, V, BIAS, GRAD, LSE, DELTA, DK, DV, TABLE, INVERSE,
    sq, sk, sv, sb, sg, sdk, sdv, sizes, place, scale, cap, zeta, gamma,
    FLAGS: tl.constexpr, CAP: tl.constexpr, HAS_BIAS: tl.constexpr, WIDEN: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, V_WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of keys and values, over all query heads that read them."""
    H, share, queries, keys = sizes[0], sizes[1], sizes[2], sizes[3]
    D, E, tiles = sizes[4], sizes[5], sizes[6]
    N: tl.constexpr = KEYS[0] * KEYS[1] * KEYS[2]
    tile = tl.program_id(0) % tiles
    groups = H // share
    b = (tl.program_id(0) // tiles // groups).to(tl.int64)
    g = (tl.program_id(0) // tiles % groups).to(tl.int64)
    lead = place[5]
    j, j_real = tokens_of(tile, keys, lead, place[6], FLAGS[5], KEYS)
    k = load_columns(K + b * sk[0] + g * sk[1], sk, j, j_real, D, WIDTH)
    v = load_columns(V + b * sv[0] + g * sv[1], sv, j, j_real, E, V_WIDTH)
    dk = tl.zeros([N, WIDTH], tl.float32)
    dv = tl.zeros([N, V_WIDTH], tl.float32)
    leading, x0, nx, y0, ny, z0, nz = tiles_met(
        tile, keys, queries, 0, place[0], place[2], place[1], place[4], place[3], lead, place[6], INVERSE,
        FLAGS[1], FLAGS[0], FLAGS[3], FLAGS[2], FLAGS[4], FLAGS[5], KEYS, ROWS,
    )  # fmt: skip
    steps = leading + nx * ny * nz
    for turn in range(0, steps * share):
        h = g * share + turn // steps
        at = tile_met(turn % steps, leading, x0, nx, y0, ny, z0, lead, place[6], FLAGS[5], ROWS)
        i, i_real = tokens_of(at, queries, lead, place[6], FLAGS[5], ROWS)
        q = load_rows(Q + b * sq[0] + h * sq[1], sq, i, i_real, D, WIDTH)
        real = i_real[:, None] & j_real[None, :]
        bias = BIAS + b * sb[0] + h * sb[1]
        s, slope = masked_scores(
            q, k, i, j, real, scale, cap, bias, sb, place, TABLE, FLAGS, CAP, HAS_BIAS, WIDEN
        )
        row = (b * H + h) * queries + i
        lse = tl.load(LSE + row, mask=i_real, other=float("inf"))
        delta = tl.load(DELTA + row, mask=i_real, other=0.0)
        w, stretched = _stretched(s, lse, zeta, gamma)
        grad = load_rows(GRAD + b * sg[0] + h * sg[1], sg, i, i_real, E, V_WIDTH)
        clipped = _cut(stretched)
        dv = product(tl.trans(clipped.to(grad.dtype)), grad, dv, WIDEN)
        ds = w * (_of_weights(grad, v, stretched, zeta, gamma, WIDEN) - delta[:, None])
        dk = product(tl.trans((ds * slope).to(q.dtype)), q, dk, WIDEN)
    store_rows(DK + b * sdk[0] + g * sdk[1], sdk, j, j_real, D, dk * scale, WIDTH)
    store_rows(DV + b * sdv[0] + g * sdv[1], sdv, j, j_real, E, dv, V_WIDTH)


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None = None,
    sink: torch.Tensor | None = None,
    *,
    scale: float,
    offset: int = 0,
    left: int | None = None,
    right: int | None = None,
    softcap: float | None = None,
    zeta: float = 1.0,
    gamma: float = 0.0,
    alpha: float = 0.0,
    empty_row: str = "zero",
    tile: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return attention by a clipped softmax ``[B, H, I, E]``, and the log-sum-exp of each row ``[B, H, I]``.

    Parameters
    ----------
    q, k, v, bias, sink, scale, softcap
        As in `rewriter.kernels.softmax.definition.Operands`; any strides.
    offset, left, right
        The band; None is unbounded.
    zeta, gamma, alpha
        As of `rewriter.kernels.clipped.form.Clipped`; the gammas of both are added.
    empty_row
        Not read: a row that sees nothing gives 0.
    tile
        Tokens per tile, a power of two from 16; chosen by the sizes if None.
    """
    B, H, queries, _ = q.shape
    out = q.new_empty(B, queries, H, v.shape[3]).transpose(1, 2)
    lse = q.new_empty((B, H, queries), dtype=torch.float32)
    x = launch(q, k, v, bias, sink, scale, softcap, Seen(offset, left, right), tile)
    tiles = x.count(queries, x.rows)
    if not out.numel():
        return out, lse
    _forward[(tiles * B * H,)](
        q, k, v, pointer(x.bias, q), pointer(x.sink, q), out, lse, q,
        q.stride(), k.stride(), v.stride(), strides_of(x.bias), strides_of(x.sink)[:3], out.stride(),
        x.sizes(tiles), x.place, scale, softcap or 1.0, zeta, gamma - alpha / k.shape[2],
        HAS_SINK=sink is not None, num_stages=2, **x.constants,
    )  # fmt: skip
    return out, lse


def backward(
    grad: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None = None,
    sink: torch.Tensor | None = None,
    *,
    wanted: Sequence[bool] = (True,) * 5,
    scale: float,
    offset: int = 0,
    left: int | None = None,
    right: int | None = None,
    softcap: float | None = None,
    zeta: float = 1.0,
    gamma: float = 0.0,
    alpha: float = 0.0,
    empty_row: str = "zero",
    tile: int | None = None,
) -> tuple[torch.Tensor | None, ...]:
    """Return the gradients of q, k, v, bias and sink; None where it is not wanted.

    A row that sees nothing passes no gradient on. The gradient of a bias takes ``[B, H, I, J]`` in float32.

    Parameters
    ----------
    grad
        Gradient of the result.
    out, lse
        What `forward` returned.
    wanted
        Of q, k, v, bias and sink.
    q, k, v, bias, sink, scale, offset, left, right, softcap, zeta, gamma, alpha, empty_row, tile
        As given to `forward`.
    """
    B, H, queries, _ = q.shape
    x = launch(q, k, v, bias, sink, scale, softcap, Seen(offset, left, right), tile)
    of_q, of_k, of_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    of_bias = None
    if bias is not None and wanted[3]:
        of_bias = q.new_zeros((B, H, queries, k.shape[2]), dtype=torch.float32)
    delta = torch.zeros_like(lse)
    common = (x.place, scale, softcap or 1.0, zeta, gamma - alpha / k.shape[2])
    strides = (q.stride(), k.stride(), v.stride(), strides_of(x.bias), grad.stride())
    given = (q, k, v, pointer(x.bias, q), grad, lse, delta)
    tiles = x.count(queries, x.rows)
    _of_queries[(tiles * B * H,)](
        *given, of_q, pointer(of_bias, q), q, *strides, of_q.stride(),
        x.sizes(tiles), *common, WANT_BIAS=of_bias is not None, num_stages=2, **x.constants,
    )  # fmt: skip
    if wanted[1] or wanted[2]:
        tiles = x.count(k.shape[2], x.keys)
        _of_keys[(tiles * B * k.shape[1],)](
            *given, of_k, of_v, q, q, *strides, of_k.stride(), of_v.stride(),
            x.sizes(tiles), *common, num_stages=2, **x.constants,
        )  # fmt: skip
    of_sink = None
    if sink is not None and wanted[4]:
        taken = torch.exp(sink.float() - lse[..., None]) * delta[..., None]
        of_sink = -taken.sum_to_size(sink.shape).to(sink.dtype)
    if bias is not None and of_bias is not None:
        of_bias = of_bias.sum_to_size(bias.shape).to(bias.dtype)
    found = (of_q, of_k, of_v, of_bias, of_sink)
    return tuple(g if want else None for g, want in zip(found, wanted, strict=False))
