"""Maps weighed by a softmax over them: each map is read once, the weights stay in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["forward"]

BLOCK = 1024
"""Places of one row that a program computes."""


@triton.jit
def _weighed(SCORES, MAPS, OUT, ss, C, P, N: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = place < P
    at = row * P + place
    scores = SCORES + (row // C) * ss[1] + (row % C) * ss[2] + place.to(tl.int64) * ss[3]
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    for n in tl.static_range(N):
        top = tl.maximum(top, tl.load(scores + n * ss[0], mask=real, other=0.0).to(tl.float32))
    total = tl.zeros([BLOCK], tl.float32)
    out = tl.zeros([BLOCK], tl.float32)
    for n in tl.static_range(N):
        weight = tl.exp(tl.load(scores + n * ss[0], mask=real, other=0.0).to(tl.float32) - top)
        total += weight
        out += weight * tl.load(MAPS[n] + at, mask=real, other=0.0).to(tl.float32)
    tl.store(OUT + at, (out / total).to(OUT.dtype.element_ty), mask=real)


def forward(scores: torch.Tensor, *maps: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of weighed maps, contiguous, and nothing for the gradient.

    Parameters
    ----------
    scores, maps
        As in `rewriter.kernels.weighed.definition.by_settings`; any strides.
    """
    given = tuple(x.contiguous() for x in maps if x is not None)
    shape = given[0].shape
    rows, channels = (shape[0], shape[1]) if len(shape) > 1 else (1, 1)
    places = given[0].numel() // max(rows * channels, 1)
    spread = scores.expand(len(given), *shape).reshape(len(given), rows, channels, places)
    out = torch.empty_like(given[0])
    if out.numel():
        block = min(BLOCK, triton.next_power_of_2(places))
        _weighed[(rows * channels, triton.cdiv(places, block))](
            spread, given, out, spread.stride(), channels, places, N=len(given), BLOCK=block
        )
    return out, scores.new_empty(0)
