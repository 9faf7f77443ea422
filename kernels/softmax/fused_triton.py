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

from rewriter.kernels.softmax.online_triton import attend_near, begin, divided, log_sum
from rewriter.kernels.softmax.tiles_triton import (
    Seen,
    keys_met,
    load_columns,
    load_rows,
    masked_scores,
    met_in,
    product,
    program_of,
    program_of_keys,
    queries_met,
    scored_keys,
    steps_of,
    store_rows,
    tokens_of,
    widens,
)

__all__ = [
    "Launch",
    "as_it_is",
    "attend",
    "backward",
    "differentiate",
    "forward",
    "launch",
    "pointer",
    "strides_of",
]


@triton.jit
def as_it_is(p, stretch):
    """Return the weights that meet the values, for those of the softmax, and their slope."""
    return p, 1.0


@triton.jit
def _forward(
    Q, K, V, BIAS, SINK, OUT, LSE, TABLE,
    sq, sk, sv, sb, ss, so, sizes, place, scale, cap,
    FLAGS: tl.constexpr, CAP: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SINK: tl.constexpr,
    NAN_ROWS: tl.constexpr, WIDEN: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, V_WIDTH: tl.constexpr,
):  # fmt: skip
    M: tl.constexpr = ROWS[0] * ROWS[1] * ROWS[2]
    tile, b, h, g = program_of(sizes)
    queries = sizes[2]
    i, i_real = tokens_of(tile, queries, place[5], place[6], FLAGS[5], ROWS)
    q = load_rows(Q + b * sq[0] + h * sq[1], sq, i, i_real, sizes[4], WIDTH)
    top, total = begin(SINK, ss, b, h, i, i_real, M, HAS_SINK)
    met = keys_met(tile, queries, sizes[3], place, TABLE, FLAGS, ROWS, KEYS)
    out, top, total = attend_near(
        q, i, i_real, met, K + b * sk[0] + g * sk[1], V + b * sv[0] + g * sv[1],
        BIAS + b * sb[0] + h * sb[1], sk, sv, sb, sizes, place, TABLE, scale, cap,
        top, total, tl.zeros([M, V_WIDTH], tl.float32),
        FLAGS, CAP, HAS_BIAS, WIDEN, KEYS, WIDTH, V_WIDTH,
    )  # fmt: skip
    out = divided(out, total)
    if NAN_ROWS:
        out = tl.where((total == 0)[:, None], float("nan"), out)
    store_rows(OUT + b * so[0] + h * so[1], so, i, i_real, sizes[5], out, V_WIDTH)
    tl.store(LSE + (b * sizes[0] + h) * queries + i, log_sum(top, total, float("inf")), mask=i_real)


@triton.jit
def of_scores(p, grad, v, delta, stretch, APPLIED: tl.constexpr, WIDEN: tl.constexpr):
    """Return the weights that meet the values, and the gradient of the scores before the cap."""
    met, slope = APPLIED(p, stretch)
    of_met = product(grad, v, tl.zeros([grad.shape[0], v.shape[1]], tl.float32), WIDEN)
    return met, p * (of_met * slope - delta[:, None])


@triton.jit
def _of_queries(
    Q, K, V, BIAS, GRAD, LSE, DELTA, DQ, DBIAS, TABLE,
    sq, sk, sv, sb, sg, sd, sizes, place, scale, cap, stretch,
    FLAGS: tl.constexpr, CAP: tl.constexpr, HAS_BIAS: tl.constexpr, WANT_BIAS: tl.constexpr,
    APPLIED: tl.constexpr, WIDEN: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, V_WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of queries, and of the bias there."""
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
    delta = tl.load(DELTA + row, mask=i_real, other=0.0)
    dq = tl.zeros([M, WIDTH], tl.float32)
    met = keys_met(tile, queries, keys, place, TABLE, FLAGS, ROWS, KEYS)
    for step in range(0, steps_of(met)):
        j, j_real, k, s, slope = scored_keys(
            step, met, q, i, i_real, K, BIAS, sk, sb, sizes, place, TABLE, scale, cap,
            FLAGS, CAP, HAS_BIAS, WIDEN, KEYS, WIDTH,
        )  # fmt: skip
        v = load_columns(V, sv, j, j_real, E, V_WIDTH)
        _, ds = of_scores(tl.exp(s - lse[:, None]), grad, v, delta, stretch, APPLIED, WIDEN)
        if WANT_BIAS:
            real = i_real[:, None] & j_real[None, :]
            tl.store(DBIAS + row[:, None] * keys + j[None, :], ds, mask=real)
        dq = product((ds * slope).to(k.dtype), tl.trans(k), dq, WIDEN)
    store_rows(DQ + b * sd[0] + h * sd[1], sd, i, i_real, D, dq * scale, WIDTH)


@triton.jit
def _of_keys(
    Q, K, V, BIAS, GRAD, LSE, DELTA, DK, DV, TABLE, INVERSE,
    sq, sk, sv, sb, sg, sdk, sdv, sizes, place, scale, cap, stretch,
    FLAGS: tl.constexpr, CAP: tl.constexpr, HAS_BIAS: tl.constexpr,
    APPLIED: tl.constexpr, WIDEN: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, V_WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of keys and values, over all query heads that read them."""
    N: tl.constexpr = KEYS[0] * KEYS[1] * KEYS[2]
    tile, b, g = program_of_keys(sizes)
    H, share, queries, keys, D, E = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]
    j, j_real = tokens_of(tile, keys, place[5], place[6], FLAGS[5], KEYS)
    k = load_columns(K + b * sk[0] + g * sk[1], sk, j, j_real, D, WIDTH)
    v = load_columns(V + b * sv[0] + g * sv[1], sv, j, j_real, E, V_WIDTH)
    dk = tl.zeros([N, WIDTH], tl.float32)
    dv = tl.zeros([N, V_WIDTH], tl.float32)
    met = queries_met(tile, keys, queries, place, INVERSE, FLAGS, ROWS, KEYS)
    steps = steps_of(met)
    for turn in range(0, steps * share):
        h = g * share + turn // steps
        i, i_real = met_in(turn % steps, met, queries, place, FLAGS, ROWS)
        q = load_rows(Q + b * sq[0] + h * sq[1], sq, i, i_real, D, WIDTH)
        real = i_real[:, None] & j_real[None, :]
        bias = BIAS + b * sb[0] + h * sb[1]
        s, slope = masked_scores(
            q, k, i, j, real, scale, cap, bias, sb, place, TABLE, FLAGS, CAP, HAS_BIAS, WIDEN
        )
        row = (b * H + h) * queries + i
        p = tl.exp(s - tl.load(LSE + row, mask=i_real, other=float("inf"))[:, None])
        delta = tl.load(DELTA + row, mask=i_real, other=0.0)
        grad = load_rows(GRAD + b * sg[0] + h * sg[1], sg, i, i_real, E, V_WIDTH)
        weights, ds = of_scores(p, grad, v, delta, stretch, APPLIED, WIDEN)
        dv = product(tl.trans(weights.to(grad.dtype)), grad, dv, WIDEN)
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
    mean: torch.Tensor | None = None,
    applied: triton.JITFunction = as_it_is,
    stretch: tuple[float, float] = (1.0, 0.0),
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
    mean
        Of the gradients of the weights of each row, by these weights, ``[B, H, I]`` in float32. Where the
        weights meet the values as they are, it is the product of the result and its gradient.
    applied, stretch
        What the weights become before they meet the values, and its slope, by two numbers.
    """
    B, H, queries, _ = q.shape
    x = launch(q, k, v, bias, sink, scale, softcap, seen, tile)
    delta = (grad.float() * out.float()).sum(-1).contiguous() if mean is None else mean
    of_q, of_k, of_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    of_bias = None
    if bias is not None and wanted[3]:
        of_bias = q.new_zeros((B, H, queries, k.shape[2]), dtype=torch.float32)
    common = (x.place, scale, softcap or 1.0, stretch)
    constants = {"APPLIED": applied, "num_stages": 2, **x.constants}
    strides = (q.stride(), k.stride(), v.stride(), strides_of(x.bias), grad.stride())
    rows = (pointer(x.bias, q), grad, lse, delta)
    if wanted[0] or of_bias is not None:
        tiles = x.count(queries, x.rows)
        _of_queries[(tiles * B * H,)](
            q, k, v, *rows, of_q, pointer(of_bias, q), pointer(seen.table, q), *strides, of_q.stride(),
            x.sizes(tiles), *common, WANT_BIAS=of_bias is not None, **constants,
        )  # fmt: skip
    if wanted[1] or wanted[2]:
        tiles = x.count(k.shape[2], x.keys)
        _of_keys[(tiles * B * k.shape[1],)](
            q, k, v, *rows, of_k, of_v, pointer(seen.table, q), pointer(seen.inverse, q), *strides,
            of_k.stride(), of_v.stride(), x.sizes(tiles), *common, **constants,
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
