"""Softmax attention in tiles: forward and backward kernels that skip what no query of a tile sees.

One pass over the keys with a running maximum and sum: Dao et al., *FlashAttention* (2022), algorithm 1, and
its backward pass with the products recomputed (algorithm 4), once per tile of queries and once per tile of
keys, so that nothing is added atomically and gradients are the same in every run.

The kernels serve every form whose weights are a softmax over some of the keys: `Seen` says which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

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
    widens,
)

__all__ = ["Launch", "attend", "backward", "differentiate", "forward", "launch", "pointer", "strides_of"]


@triton.jit
def _forward(
    Q, K, V, BIAS, SINK, OUT, LSE, TABLE,
    sq, sk, sv, sb, ss, so, sizes, place, scale, cap,
    FLAGS: tl.constexpr, CAP: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SINK: tl.constexpr,
    NAN_ROWS: tl.constexpr, WIDEN: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, V_WIDTH: tl.constexpr,
):  # fmt: skip
    H, share, queries, keys, D, E, tiles = (
        sizes[0],
        sizes[1],
        sizes[2],
        sizes[3],
        sizes[4],
        sizes[5],
        sizes[6],
    )
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
    out = tl.zeros([M, V_WIDTH], tl.float32)
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
        p = tl.exp(s - safe[:, None])
        shrink = tl.exp(top - safe)
        total = total * shrink + tl.sum(p, 1)
        v = load_rows(V, sv, j, j_real, E, V_WIDTH)
        out = product(p.to(v.dtype), v, out * shrink[:, None], WIDEN)
        top = higher
    empty = total == 0
    out = out / tl.where(empty, 1.0, total)[:, None]
    if NAN_ROWS:
        out = tl.where(empty[:, None], float("nan"), out)
    store_rows(OUT + b * so[0] + h * so[1], so, i, i_real, E, out, V_WIDTH)
    lse = tl.where(empty, float("inf"), top + tl.log(tl.where(empty, 1.0, total)))
    tl.store(LSE + (b * H + h) * queries + i, lse, mask=i_real)


@triton.jit
def _of_queries(
    Q, K, V, BIAS, GRAD, LSE, DELTA, DQ, DBIAS, TABLE,
    sq, sk, sv, sb, sg, sd, sizes, place, scale, cap,
    FLAGS: tl.constexpr, CAP: tl.constexpr, HAS_BIAS: tl.constexpr, WANT_BIAS: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, V_WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of queries, and of the bias there."""
    H, share, queries, keys, D, E, tiles = (
        sizes[0],
        sizes[1],
        sizes[2],
        sizes[3],
        sizes[4],
        sizes[5],
        sizes[6],
    )
    M: tl.constexpr = ROWS[0] * ROWS[1] * ROWS[2]
    N: tl.constexpr = KEYS[0] * KEYS[1] * KEYS[2]
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
    delta = tl.load(DELTA + row, mask=i_real, other=0.0)
    dq = tl.zeros([M, WIDTH], tl.float32)
    leading, x0, nx, y0, ny, z0, nz = tiles_met(
        tile, queries, keys, place[0], 0, place[1], place[2], place[3], place[4], lead, place[6], TABLE,
        FLAGS[0], FLAGS[1], FLAGS[2], FLAGS[3], FLAGS[4], FLAGS[5], ROWS, KEYS,
    )  # fmt: skip
    for step in range(0, leading + nx * ny * nz):
        at = tile_met(step, leading, x0, nx, y0, ny, z0, lead, place[6], FLAGS[5], KEYS)
        j, j_real = tokens_of(at, keys, lead, place[6], FLAGS[5], KEYS)
        k = load_columns(K, sk, j, j_real, D, WIDTH)
        real = i_real[:, None] & j_real[None, :]
        s, slope = masked_scores(
            q, k, i, j, real, scale, cap, BIAS, sb, place, TABLE, FLAGS, CAP, HAS_BIAS, WIDEN
        )
        p = tl.exp(s - lse[:, None])
        v = load_columns(V, sv, j, j_real, E, V_WIDTH)
        ds = p * (product(grad, v, tl.zeros([M, N], tl.float32), WIDEN) - delta[:, None])
        if WANT_BIAS:
            tl.store(DBIAS + row[:, None] * keys + j[None, :], ds, mask=real)
        dq = product((ds * slope).to(k.dtype), tl.trans(k), dq, WIDEN)
    store_rows(DQ + b * sd[0] + h * sd[1], sd, i, i_real, D, dq * scale, WIDTH)


@triton.jit
def _of_keys(
    Q, K, V, BIAS, GRAD, LSE, DELTA, DK, DV, TABLE, INVERSE,
    sq, sk, sv, sb, sg, sdk, sdv, sizes, place, scale, cap,
    FLAGS: tl.constexpr, CAP: tl.constexpr, HAS_BIAS: tl.constexpr, WIDEN: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, V_WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of keys and values, over all query heads that read them."""
    H, share, queries, keys, D, E, tiles = (
        sizes[0],
        sizes[1],
        sizes[2],
        sizes[3],
        sizes[4],
        sizes[5],
        sizes[6],
    )
    M: tl.constexpr = ROWS[0] * ROWS[1] * ROWS[2]
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
        )  # fmt: skip
        row = (b * H + h) * queries + i
        p = tl.exp(s - tl.load(LSE + row, mask=i_real, other=float("inf"))[:, None])
        grad = load_rows(GRAD + b * sg[0] + h * sg[1], sg, i, i_real, E, V_WIDTH)
        dv = product(tl.trans(p.to(grad.dtype)), grad, dv, WIDEN)
        delta = tl.load(DELTA + row, mask=i_real, other=0.0)
        ds = p * (product(grad, v, tl.zeros([M, N], tl.float32), WIDEN) - delta[:, None])
        dk = product(tl.trans((ds * slope).to(q.dtype)), q, dk, WIDEN)
    store_rows(DK + b * sdk[0] + g * sdk[1], sdk, j, j_real, D, dk * scale, WIDTH)
    store_rows(DV + b * sdv[0] + g * sdv[1], sdv, j, j_real, E, dv, V_WIDTH)


@dataclass(frozen=True)
class Launch:
    """What all kernels are told of one call, and its tiles.

    Parameters
    ----------
    q, k, v, bias, sink
        Operands; the bias is expanded to ``[B, H, I, J]``, sinks are joined to one logit ``[B, H, I]``.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    bias: torch.Tensor | None
    sink: torch.Tensor | None
    scale: float
    softcap: float | None
    seen: Seen
    rows: tuple[int, int, int]
    keys: tuple[int, int, int]

    @property
    def place(self) -> tuple[object, ...]:
        """Numbers of `Seen`, 0 for those that are None: ``FLAGS`` says which count."""
        s = self.seen
        bounds = (s.left, s.right, s.back, s.ahead)
        return (s.offset, *(x or 0 for x in bounds), s.lead, s.sizes or (1, 1, 1), s.dilation)

    @property
    def flags(self) -> tuple[bool, ...]:
        """Which of left, right, back, ahead and table there are, and whether tokens lie on a grid."""
        s = self.seen
        return (*(x is not None for x in (s.left, s.right, s.back, s.ahead, s.table)), s.grid)

    @property
    def constants(self) -> dict[str, object]:
        """Compile-time constants of all kernels."""
        return {
            "FLAGS": self.flags,
            "CAP": self.softcap is not None,
            "HAS_BIAS": self.bias is not None,
            "WIDEN": widens(self.q.dtype),
            "ROWS": self.rows,
            "KEYS": self.keys,
            "WIDTH": max(16, triton.next_power_of_2(self.q.shape[3])),
            "V_WIDTH": max(16, triton.next_power_of_2(self.v.shape[3])),
        }

    def count(self, tokens: int, tile: tuple[int, int, int]) -> int:
        """Return the number of tiles."""
        if not self.seen.grid:
            return triton.cdiv(tokens, math.prod(tile))
        assert self.seen.sizes is not None
        blocks = (triton.cdiv(n, t) for n, t in zip(self.seen.sizes, tile, strict=True))
        return triton.cdiv(self.seen.lead, math.prod(tile)) + math.prod(blocks)

    def sizes(self, tiles: int) -> tuple[int, ...]:
        """Numbers of heads, of heads that share keys, of queries, keys, features and tiles."""
        _, heads, queries, width = self.q.shape
        return (heads, heads // self.k.shape[1], queries, self.k.shape[2], width, self.v.shape[3], tiles)


def strides_of(x: torch.Tensor | None) -> tuple[int, ...]:
    """Return the strides of an operand, 0 for one that there is not."""
    return (0, 0, 0, 0) if x is None else x.stride()


def _block(length: int, seen: Seen) -> tuple[int, int, int]:
    """Return a tile of so many tokens: a block of the grid that is as cubic as its axes allow."""
    if not seen.grid:
        return (1, 1, length)
    assert seen.sizes is not None
    tile = [1, 1, 1]
    axes = [axis for axis in (2, 1, 0) if seen.sizes[axis] > 1] or [2]
    for turn in range(length.bit_length() - 1):
        tile[axes[turn % len(axes)]] *= 2
    return (tile[0], tile[1], tile[2])


def _tiles(
    q: torch.Tensor, v: torch.Tensor, seen: Seen, tile: int | None
) -> tuple[tuple[int, int, int], ...]:
    """Return tiles of queries and keys that fit the memory of a multiprocessor."""
    width = max(16, triton.next_power_of_2(max(q.shape[3], v.shape[3])))
    small = q.element_size() == 2
    fits = (64 if small else 32) if width <= 128 else (32 if small else 16)
    rows = tile or min(fits, max(16, triton.next_power_of_2(q.shape[2])))
    return _block(rows, seen), _block(tile or fits, seen)


def launch(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    sink: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    seen: Seen,
    tile: int | None,
) -> Launch:
    """Return what the kernels are told; see `attend` for the parameters."""
    shape = (*q.shape[:3], k.shape[2])
    if bias is not None:
        bias = bias.expand(shape)
    if sink is not None:
        sink = sink.float().logsumexp(-1).expand(shape[:3])
    rows, keys = _tiles(q, v, seen, tile)
    return Launch(q, k, v, bias, sink, scale, softcap, seen, rows, keys)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None = None,
    sink: torch.Tensor | None = None,
    *,
    scale: float,
    softcap: float | None = None,
    seen: Seen,
    empty_row: str = "never",
    tile: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return attention ``[B, H, I, E]``, and for the gradient the log-sum-exp of each row, ``[B, H, I]``.

    Parameters
    ----------
    q, k, v, bias, sink, scale, softcap
        As in `rewriter.kernels.softmax.definition.Operands`; any strides.
    seen
        What a query sees.
    empty_row
        ``"nan"``, else a row that sees neither key nor sink gives 0.
    tile
        Tokens per tile, a power of two from 16; chosen by the sizes if None.
    """
    B, H, queries, _ = q.shape
    out = q.new_empty(B, queries, H, v.shape[3]).transpose(1, 2)
    lse = q.new_empty((B, H, queries), dtype=torch.float32)
    x = launch(q, k, v, bias, sink, scale, softcap, seen, tile)
    tiles = x.count(queries, x.rows)
    if not out.numel():
        return out, lse
    _forward[(tiles * B * H,)](
        q, k, v, pointer(x.bias, q), pointer(x.sink, q), out, lse, pointer(seen.table, q),
        q.stride(), k.stride(), v.stride(), strides_of(x.bias), strides_of(x.sink)[:3], out.stride(),
        x.sizes(tiles), x.place, scale, softcap or 1.0,
        HAS_SINK=sink is not None, NAN_ROWS=empty_row == "nan", num_stages=2, **x.constants,
    )  # fmt: skip
    return out, lse


def differentiate(
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
    softcap: float | None = None,
    seen: Seen,
    tile: int | None = None,
) -> tuple[torch.Tensor | None, ...]:
    """Return the gradients of q, k, v, bias and sink; None where it is not wanted.

    A row that sees nothing passes no gradient on. The gradient of a bias takes ``[B, H, I, J]`` in float32.

    Parameters
    ----------
    grad
        Gradient of the result.
    out, lse
        What `attend` returned.
    q, k, v, bias, sink, scale, softcap, seen, tile
        As given to `attend`.
    wanted
        Of q, k, v, bias and sink.
    """
    B, H, queries, _ = q.shape
    x = launch(q, k, v, bias, sink, scale, softcap, seen, tile)
    delta = (grad.float() * out.float()).sum(-1)
    of_q, of_k, of_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    of_bias = None
    if bias is not None and wanted[3]:
        of_bias = q.new_zeros((B, H, queries, k.shape[2]), dtype=torch.float32)
    common = (x.place, scale, softcap or 1.0)
    strides = (q.stride(), k.stride(), v.stride(), strides_of(x.bias), grad.stride())
    rows = (pointer(x.bias, q), grad, lse, delta.contiguous())
    if wanted[0] or of_bias is not None:
        tiles = x.count(queries, x.rows)
        _of_queries[(tiles * B * H,)](
            q, k, v, *rows, of_q, pointer(of_bias, q), pointer(seen.table, q), *strides, of_q.stride(),
            x.sizes(tiles), *common, WANT_BIAS=of_bias is not None, num_stages=2, **x.constants,
        )  # fmt: skip
    if wanted[1] or wanted[2]:
        tiles = x.count(k.shape[2], x.keys)
        _of_keys[(tiles * B * k.shape[1],)](
            q, k, v, *rows, of_k, of_v, pointer(seen.table, q), pointer(seen.inverse, q), *strides,
            of_k.stride(), of_v.stride(), x.sizes(tiles), *common, num_stages=2, **x.constants,
        )  # fmt: skip
    of_sink = None
    if sink is not None and wanted[4]:
        taken = torch.exp(sink.float() - lse[..., None]) * delta[..., None]
        of_sink = -taken.sum_to_size(sink.shape).to(sink.dtype)
    if bias is not None and of_bias is not None:
        of_bias = of_bias.sum_to_size(bias.shape).to(bias.dtype)
    found = (of_q, of_k, of_v, of_bias, of_sink)
    return tuple(g if want else None for g, want in zip(found, wanted, strict=False))


def forward(
    *operands: torch.Tensor | None,
    offset: int = 0,
    left: int | None = None,
    right: int | None = None,
    **settings: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return softmax attention, as ``torch.ops.rewriter.softmax``; see `attend`."""
    return attend(*operands, seen=Seen(offset, left, right), **settings)


def backward(
    *operands: torch.Tensor | None,
    offset: int = 0,
    left: int | None = None,
    right: int | None = None,
    empty_row: str = "never",
    **settings: object,
) -> tuple[torch.Tensor | None, ...]:
    """Return the gradients of softmax attention; see `differentiate`."""
    return differentiate(*operands, seen=Seen(offset, left, right), **settings)


def pointer(x: torch.Tensor | None, other: torch.Tensor) -> torch.Tensor:
    """Return a tensor for a pointer that a kernel may not follow."""
    return other if x is None else x
