"""The nearest token of another set in tiles: a running largest nearness and its place for each token.

Of ``N`` tokens in each set, ``N²`` pairs are computed and ``2 N`` numbers written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rewriter.kernels.softmax.tiles_triton import load_columns, load_rows, product, widens

__all__ = ["forward"]


@triton.jit
def _column(start, strides, at, real):
    """Load one number per token; 0 beyond what is real."""
    return tl.load(start + at.to(tl.int64) * strides[2], mask=real, other=0.0).to(tl.float32)


@triton.jit
def _nearest(
    FIRST, SECOND, FIRST_TERM, SECOND_TERM, FIRST_SIZE, SECOND_SIZE, OUT,
    sf, ss, sft, sst, sfs, sss, sizes,
    SIZED: tl.constexpr, WIDEN: tl.constexpr,
    ROWS: tl.constexpr, OTHERS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    count, others, D, tiles = sizes[0], sizes[1], sizes[2], sizes[3]
    b = (tl.program_id(0) // tiles).to(tl.int64)
    i = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    i_real = i < count
    x = load_rows(FIRST + b * sf[0], sf, i, i_real, D, WIDTH)
    own = _column(FIRST_TERM + b * sft[0], sft, i, i_real)
    m = _column(FIRST_SIZE + b * sfs[0], sfs, i, i_real)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    place = tl.zeros([ROWS], tl.int32)
    for start in range(0, others, OTHERS):
        j = start + tl.arange(0, OTHERS)
        j_real = j < others
        y = load_columns(SECOND + b * ss[0], ss, j, j_real, D, WIDTH)
        term = own[:, None] + _column(SECOND_TERM + b * sst[0], sst, j, j_real)[None, :]
        near = tl.floor(product(x, y, tl.zeros([ROWS, OTHERS], tl.float32), WIDEN) + term)
        if SIZED:
            n = _column(SECOND_SIZE + b * sss[0], sss, j, j_real)
            total = tl.maximum(m[:, None] + n[None, :], 1.1754943508222875e-38)
            near = near * (m[:, None] * n[None, :] / total)
            j_real = j_real & (n != 0)
        near = tl.where(j_real[None, :] & (near == near), near, float("-inf"))
        largest = tl.max(near, 1)
        found = tl.min(tl.where(near == largest[:, None], j[None, :], 2147483647), 1)
        place = tl.where(largest > best, found, place)
        best = tl.maximum(best, largest)
    at = OUT + b * 2 * count + i
    tl.store(at, best, mask=i_real)
    tl.store(at + count, place.to(tl.float32), mask=i_real)


def forward(
    first: torch.Tensor,
    second: torch.Tensor,
    first_term: torch.Tensor,
    second_term: torch.Tensor,
    first_size: torch.Tensor | None = None,
    second_size: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `rewriter.kernels.nearest.definition.by_settings` defines, and nothing for a gradient.

    Parameters
    ----------
    first, second, first_term, second_term, first_size, second_size
        As there; any strides, at most 256 features.
    """
    B, count, width = first.shape
    out = first.new_empty((B, 2, count), dtype=torch.float32)
    wide = max(16, triton.next_power_of_2(width))
    tile = 64 if wide <= 128 and first.element_size() == 2 else 32
    rows = min(tile, max(16, triton.next_power_of_2(count)))
    tiles = triton.cdiv(count, rows)
    sizes = (None, None) if second_size is None else (first_size, second_size)
    given = (first, second, first_term, second_term, *(first if x is None else x for x in sizes))
    if out.numel():
        _nearest[(B * tiles,)](
            *given, out, *(_four(x) for x in given), (count, second.shape[1], width, tiles),
            SIZED=second_size is not None, WIDEN=widens(first.dtype),
            ROWS=rows, OTHERS=tile, WIDTH=wide, num_stages=2,
        )  # fmt: skip
    return out, first.new_empty(0)


def _four(x: torch.Tensor) -> tuple[int, int, int, int]:
    """Return the strides of ``[B, N, D]`` with one for an axis of heads, which there is not."""
    return (x.stride(0), 0, x.stride(1), x.stride(2))
