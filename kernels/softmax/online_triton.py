"""The softmax of rows that are seen tile by tile: a running maximum and sum.

Milakov and Gimelshein, *Online normalizer calculation for softmax* (2018), algorithm 3; Dao et al.,
*FlashAttention* (2022), algorithm 1. A row that has seen nothing has the maximum ``-inf`` and the sum 0.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rewriter.kernels.softmax.tiles_triton import load_rows, product, scored_keys, steps_of

__all__ = ["attend_near", "begin", "divided", "fold", "log_sum"]


@triton.jit
def begin(SINK, ss, b, h, i, i_real, LENGTH: tl.constexpr, HAS_SINK: tl.constexpr):
    """Return maximum and sum of rows before any key; of a sink, its logit and 1."""
    top = tl.full([LENGTH], float("-inf"), tl.float32)
    total = tl.zeros([LENGTH], tl.float32)
    if HAS_SINK:
        top = tl.load(SINK + b * ss[0] + h * ss[1] + i.to(tl.int64) * ss[2], mask=i_real, other=0.0)
        total = tl.where(top == float("-inf"), 0.0, 1.0)
    return top, total


@triton.jit
def fold(s, top, total):
    """Return the exponentials of scores, what shrinks those of before, and the new maximum and sum."""
    higher = tl.maximum(top, tl.max(s, 1))
    safe = tl.where(higher == float("-inf"), 0.0, higher)
    p = tl.exp(s - safe[:, None])
    shrink = tl.exp(top - safe)
    return p, shrink, higher, total * shrink + tl.sum(p, 1)


@triton.jit
def log_sum(top, total, nothing):
    """Return the logarithm of the sum of exponentials of each row; ``nothing`` where it has seen nothing."""
    empty = total == 0
    return tl.where(empty, nothing, top + tl.log(tl.where(empty, 1.0, total)))


@triton.jit
def divided(out, total):
    """Return what is summed over the sum of its weights; 0 where a row has seen nothing."""
    return out / tl.where(total == 0, 1.0, total)[:, None]


@triton.jit
def attend_near(
    q, i, i_real, met, K, V, BIAS, sk, sv, sb, sizes, place, TABLE, scale, cap, top, total, out,
    FLAGS: tl.constexpr, CAP: tl.constexpr, HAS_BIAS: tl.constexpr, WIDEN: tl.constexpr,
    KEYS: tl.constexpr, WIDTH: tl.constexpr, V_WIDTH: tl.constexpr,
):  # fmt: skip
    """Return the sum of weighed values, the maximum and the sum of weights after all tiles that are met."""
    for step in range(0, steps_of(met)):
        j, j_real, _, s, _ = scored_keys(
            step, met, q, i, i_real, K, BIAS, sk, sb, sizes, place, TABLE, scale, cap,
            FLAGS, CAP, HAS_BIAS, WIDEN, KEYS, WIDTH,
        )  # fmt: skip
        p, shrink, top, total = fold(s, top, total)
        v = load_rows(V, sv, j, j_real, sizes[5], V_WIDTH)
        out = product(p.to(v.dtype), v, out * shrink[:, None], WIDEN)
    return out, top, total
