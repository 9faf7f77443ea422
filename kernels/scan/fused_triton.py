"""Faded causal sums in one pass over the keys: a state per head stays on the chip, chunk after chunk.

Within a chunk all pairs are computed, as in `rewriter.kernels.scan.definition.scan_in_chunks`; exponents are
never positive, whatever the decay. One program per head and block of values. Gradients are the same kernel:
see `rewriter.kernels.scan.gradient`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from rewriter.kernels.scan.gradient import scan_gradient
from rewriter.kernels.softmax.tiles_triton import load_rows, store_rows

__all__ = ["backward", "forward"]

NO_DECAY, PER_STEP, OF_KEYS, OF_VALUES = range(4)


@triton.jit
def _dot(a, b):
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _scan(
    Q, K, V, LOG, OUT, sq, sk, sv, sl, so, sizes,
    FADE: tl.constexpr, CHUNK: tl.constexpr, F_WIDTH: tl.constexpr, E_WIDTH: tl.constexpr,
):  # fmt: skip
    H, share, queries, keys = sizes[0], sizes[1], sizes[2], sizes[3]
    F, E, offset = sizes[4], sizes[5], sizes[6]
    b, h = (tl.program_id(0) // H).to(tl.int64), (tl.program_id(0) % H).to(tl.int64)
    g, e = h // share, tl.program_id(1).to(tl.int64) * E_WIDTH
    Q += b * sq[0] + h * sq[1]
    K += b * sk[0] + g * sk[1]
    V += b * sv[0] + g * sv[1] + e * sv[3]
    LOG += b * sl[0] + g * sl[1]
    OUT += b * so[0] + h * so[1] + e * so[3]
    at = tl.arange(0, CHUNK)
    earlier = at[:, None] >= at[None, :]
    state = tl.zeros([F_WIDTH, E_WIDTH], tl.float32)
    for start in range(0, tl.minimum(keys, offset + queries), CHUNK):
        j = start + at
        j_real = j < keys
        i = j - offset
        i_real = (i >= 0) & (i < queries)
        q = load_rows(Q, sq, i, i_real, F, F_WIDTH).to(tl.float32)
        k = load_rows(K, sk, j, j_real, F, F_WIDTH).to(tl.float32)
        v = load_rows(V, sv, j, j_real, E - e, E_WIDTH).to(tl.float32)
        if FADE == 0:
            pairs = tl.where(earlier, _dot(q, tl.trans(k)), 0.0)
            out = _dot(pairs, v) + _dot(q, state)
            state += _dot(tl.trans(k), v)
        elif FADE == 1:
            log = tl.load(LOG + j.to(tl.int64) * sl[2], mask=j_real, other=0.0).to(tl.float32)
            sums, total = tl.cumsum(log, 0), tl.sum(log, 0)
            faded = tl.exp(tl.where(earlier, sums[:, None] - sums[None, :], float("-inf")))
            out = _dot(_dot(q, tl.trans(k)) * faded, v) + _dot(q * tl.exp(sums)[:, None], state)
            state = tl.exp(total) * state + _dot(tl.trans(k * tl.exp(total - sums)[:, None]), v)
        elif FADE == 2:
            log = load_rows(LOG, sl, j, j_real, F, F_WIDTH).to(tl.float32)
            sums, total = tl.cumsum(log, 0), tl.sum(log, 0)
            ahead = tl.where(earlier[:, :, None], sums[:, None, :] - sums[None, :, :], float("-inf"))
            pairs = tl.sum(q[:, None, :] * k[None, :, :] * tl.exp(ahead), 2)
            out = _dot(pairs, v) + _dot(q * tl.exp(sums), state)
            state = tl.exp(total)[:, None] * state + _dot(tl.trans(k * tl.exp(total[None, :] - sums)), v)
        else:
            log = load_rows(LOG + e * sl[3], sl, j, j_real, E - e, E_WIDTH).to(tl.float32)
            sums, total = tl.cumsum(log, 0), tl.sum(log, 0)
            ahead = tl.where(earlier[:, :, None], sums[:, None, :] - sums[None, :, :], float("-inf"))
            pairs = _dot(q, tl.trans(k))
            out = tl.sum(pairs[:, :, None] * tl.exp(ahead) * v[None, :, :], 1)
            out += _dot(q, state) * tl.exp(sums)
            state = tl.exp(total)[None, :] * state + _dot(tl.trans(k), v * tl.exp(total[None, :] - sums))
        store_rows(OUT, so, i, i_real, E - e, out, E_WIDTH)


def _launch(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, offset: int, fade: int) -> Tensor:
    (B, H, queries, F), (_, G, keys, E) = q.shape, v.shape
    out = q.new_empty(B, queries, H, E).transpose(1, 2)
    if not out.numel():
        return out
    log = q if log_decay is None else log_decay.expand(B, G, keys, log_decay.shape[3])
    wide = fade >= OF_KEYS
    e_width = max(16, min(32 if wide else 64, triton.next_power_of_2(E)))
    _scan[(B * H, triton.cdiv(E, e_width))](
        q, k, v, log, out, q.stride(), k.stride(), v.stride(), log.stride(), out.stride(),
        (H, H // G, queries, keys, F, E, offset),
        FADE=fade, CHUNK=16 if wide or keys <= 16 else 32,
        F_WIDTH=max(16, triton.next_power_of_2(F)), E_WIDTH=e_width,
    )  # fmt: skip
    return out


def _sums(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, offset: int = 0) -> Tensor:
    fade = NO_DECAY if log_decay is None else OF_KEYS if log_decay.shape[3] > 1 else PER_STEP
    return _launch(q, k, v, log_decay, offset, fade)


def _values(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None) -> Tensor:
    return _launch(q, k, v, log_decay, 0, OF_VALUES)


def forward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None = None, *, offset: int = 0
) -> tuple[Tensor, Tensor]:
    """Return what `rewriter.kernels.scan.definition.scan` defines, in the dtype of q, and an empty tensor.

    Sums are float32. Any strides; at most 256 features.
    """
    return _sums(q, k, v, log_decay, offset), q.new_empty(0)


def backward(
    grad: Tensor,
    out: Tensor,
    saved: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    *,
    wanted: tuple[bool, ...] = (True,) * 4,
    offset: int = 0,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of q, k, v and the log-decay: the kernel forwards and backwards in time."""
    return scan_gradient(grad, q, k, v, log_decay, offset, _sums, _values)
