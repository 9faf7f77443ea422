"""Clipped softmax in tiles: forward and backward kernels of two passes over the keys.

The clip needs the sum of a whole row, so that the scores of each tile are computed twice: first for the
logarithm of the sum of exponentials of each row, then for the clipped weights and their product with the
values. The backward pass has one kernel more than that of softmax: the gradient of a score needs the mean
over its row, which the clip makes another one than the product of the result and its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from rewriter.kernels.softmax.fused_triton import differentiate, launch, pointer, strides_of
from rewriter.kernels.softmax.online_triton import begin, fold, log_sum
from rewriter.kernels.softmax.tiles_triton import (
    Seen,
    keys_met,
    load_columns,
    load_rows,
    product,
    program_of,
    scored_keys,
    steps_of,
    store_rows,
    tokens_of,
)

__all__ = ["backward", "forward"]


@triton.jit
def _clipped(p, stretch):
    """Return what is left of the stretched weights between 0 and 1, NaN stays, and the slope."""
    zeta, gamma = stretch[0], stretch[1]
    stretched = (zeta - gamma) * p + gamma
    slope = tl.where((stretched >= 0) & (stretched <= 1), zeta - gamma, 0.0)
    return tl.where(stretched < 0, 0.0, tl.where(stretched > 1, 1.0, stretched)), slope


@triton.jit
def _forward(
    Q, K, V, BIAS, SINK, OUT, LSE, TABLE,
    sq, sk, sv, sb, ss, so, sizes, place, scale, cap, stretch,
    FLAGS: tl.constexpr, CAP: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SINK: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, V_WIDTH: tl.constexpr,
):  # fmt: skip
    M: tl.constexpr = ROWS[0] * ROWS[1] * ROWS[2]
    tile, b, h, g = program_of(sizes)
    queries, keys, D, E = sizes[2], sizes[3], sizes[4], sizes[5]
    K += b * sk[0] + g * sk[1]
    V += b * sv[0] + g * sv[1]
    BIAS += b * sb[0] + h * sb[1]
    i, i_real = tokens_of(tile, queries, place[5], place[6], FLAGS[5], ROWS)
    q = load_rows(Q + b * sq[0] + h * sq[1], sq, i, i_real, D, WIDTH)
    top, total = begin(SINK, ss, b, h, i, i_real, M, HAS_SINK)
    met = keys_met(tile, queries, keys, place, TABLE, FLAGS, ROWS, KEYS)
    for step in range(0, steps_of(met)):
        _, _, _, s, _ = scored_keys(
            step, met, q, i, i_real, K, BIAS, sk, sb, sizes, place, TABLE, scale, cap,
            FLAGS, CAP, HAS_BIAS, WIDEN, KEYS, WIDTH,
        )  # fmt: skip
        _, _, top, total = fold(s, top, total)
    lse = log_sum(top, total, float("inf"))
    out = tl.zeros([M, V_WIDTH], tl.float32)
    for step in range(0, steps_of(met)):
        j, j_real, _, s, _ = scored_keys(
            step, met, q, i, i_real, K, BIAS, sk, sb, sizes, place, TABLE, scale, cap,
            FLAGS, CAP, HAS_BIAS, WIDEN, KEYS, WIDTH,
        )  # fmt: skip
        v = load_rows(V, sv, j, j_real, E, V_WIDTH)
        weights, _ = _clipped(tl.exp(s - lse[:, None]), stretch)
        out = product(weights.to(v.dtype), v, out, WIDEN)
    store_rows(OUT + b * so[0] + h * so[1], so, i, i_real, E, out, V_WIDTH)
    tl.store(LSE + (b * sizes[0] + h) * queries + i, lse, mask=i_real)


@triton.jit
def _means(
    Q, K, V, BIAS, GRAD, LSE, MEAN, TABLE,
    sq, sk, sv, sb, sg, sizes, place, scale, cap, stretch,
    FLAGS: tl.constexpr, CAP: tl.constexpr, HAS_BIAS: tl.constexpr, WIDEN: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, V_WIDTH: tl.constexpr,
):  # fmt: skip
    """The mean of the gradients of the weights of each row of one tile of queries, by these weights."""
    M: tl.constexpr = ROWS[0] * ROWS[1] * ROWS[2]
    tile, b, h, g = program_of(sizes)
    queries, keys, D, E = sizes[2], sizes[3], sizes[4], sizes[5]
    K += b * sk[0] + g * sk[1]
    V += b * sv[0] + g * sv[1]
    BIAS += b * sb[0] + h * sb[1]
    i, i_real = tokens_of(tile, queries, place[5], place[6], FLAGS[5], ROWS)
    q = load_rows(Q + b * sq[0] + h * sq[1], sq, i, i_real, D, WIDTH)
    grad = load_rows(GRAD + b * sg[0] + h * sg[1], sg, i, i_real, E, V_WIDTH)
    row = (b * sizes[0] + h) * queries + i
    lse = tl.load(LSE + row, mask=i_real, other=float("inf"))
    mean = tl.zeros([M], tl.float32)
    met = keys_met(tile, queries, keys, place, TABLE, FLAGS, ROWS, KEYS)
    for step in range(0, steps_of(met)):
        j, j_real, _, s, _ = scored_keys(
            step, met, q, i, i_real, K, BIAS, sk, sb, sizes, place, TABLE, scale, cap,
            FLAGS, CAP, HAS_BIAS, WIDEN, KEYS, WIDTH,
        )  # fmt: skip
        v = load_columns(V, sv, j, j_real, E, V_WIDTH)
        p = tl.exp(s - lse[:, None])
        _, slope = _clipped(p, stretch)
        of_weights = product(grad, v, tl.zeros([M, v.shape[1]], tl.float32), WIDEN)
        mean += tl.sum(p * slope * of_weights, 1)
    tl.store(MEAN + row, mean, mask=i_real)


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
        x.sizes(tiles), x.place, scale, softcap or 1.0, (zeta, gamma - alpha / k.shape[2]),
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
    seen, stretch = Seen(offset, left, right), (zeta, gamma - alpha / k.shape[2])
    x = launch(q, k, v, bias, sink, scale, softcap, seen, tile)
    mean, tiles = torch.empty_like(lse), x.count(queries, x.rows)
    _means[(tiles * B * H,)](
        q, k, v, pointer(x.bias, q), grad, lse, mean, q,
        q.stride(), k.stride(), v.stride(), strides_of(x.bias), grad.stride(),
        x.sizes(tiles), x.place, scale, softcap or 1.0, stretch, num_stages=2, **x.constants,
    )  # fmt: skip
    return differentiate(
        grad, out, lse, q, k, v, bias, sink,
        wanted=wanted, scale=scale, softcap=softcap, seen=seen, tile=tile,
        mean=mean, applied=_clipped, stretch=stretch,
    )  # fmt: skip
