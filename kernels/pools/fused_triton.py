"""Several pools of one map: every entry is read once, what is added up stays in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["forward"]

TILE = 1024
"""Entries that a program reads at once."""

PLACES = 128
"""Places beside one another that a program pools over rows."""


@triton.jit
def _rows(X, OUT, N, R, P, RB: tl.constexpr, PB: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * PB + tl.arange(0, PB)
    total = tl.zeros([RB, PB], tl.float32)
    top = tl.full([RB, PB], float("-inf"), tl.float32)
    unknown = tl.zeros([RB, PB], tl.int32)
    for start in range(0, R, RB):
        row = start + tl.arange(0, RB)
        real = (row < R)[:, None] & (place < P)[None, :]
        at = (n * R + row.to(tl.int64))[:, None] * P + place[None, :]
        x = tl.load(X + at, mask=real, other=0.0).to(tl.float32)
        total += x
        unknown += (x != x).to(tl.int32)
        top = tl.maximum(top, tl.where(real & (x == x), x, float("-inf")))
    # a maximum is NaN where an entry is
    largest = tl.where(tl.sum(unknown, 0) > 0, float("nan"), tl.max(top, 0))
    to = OUT + n * P + place
    tl.store(to, (tl.sum(total, 0) / R).to(OUT.dtype.element_ty), mask=place < P)
    tl.store(to + N.to(tl.int64) * P, largest.to(OUT.dtype.element_ty), mask=place < P)


@triton.jit
def _lines(X, OUT, R, P, RB: tl.constexpr, PB: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, PB)
    columns = tl.zeros([PB], tl.float32)
    to = OUT + n * (R + P)
    for start in range(0, R, RB):
        row = start + tl.arange(0, RB)
        real = (row < R)[:, None] & (place < P)[None, :]
        at = (n * R + row.to(tl.int64))[:, None] * P + place[None, :]
        x = tl.load(X + at, mask=real, other=0.0).to(tl.float32)
        columns += tl.sum(x, 0)
        tl.store(to + row, (tl.sum(x, 1) / P).to(OUT.dtype.element_ty), mask=row < R)
    tl.store(to + R + place, (columns / R).to(OUT.dtype.element_ty), mask=place < P)


def forward(x: torch.Tensor, *, over: str = "rows") -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pools, and nothing for the gradient.

    Parameters
    ----------
    x, over
        As in `rewriter.kernels.pools.definition.by_settings`; any strides.
    """
    x = x.contiguous()
    count, rows, places = x.shape
    if over == "lines":
        out = x.new_empty((count, rows + places))
        width = triton.next_power_of_2(places)
        if count:
            _lines[(count,)](x, out, rows, places, RB=max(TILE // width, 1), PB=width)
        return out, x.new_empty(0)
    out = x.new_empty((2, count, places))
    width = min(triton.next_power_of_2(places), PLACES)
    if count:
        grid = (count, triton.cdiv(places, width))
        _rows[grid](x, out, count, rows, places, RB=TILE // width, PB=width)
    return out, x.new_empty(0)
