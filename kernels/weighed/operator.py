"""``torch.ops.rewriter.weighed``: several maps weighed by a softmax over them as one operator of PyTorch."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor

from rewriter.kernels.weighed.gradient import weighed_gradient
from rewriter.lower.fused_operator import FusedOperator, launcher, register

__all__ = ["PLACES", "why_no_kernel"]

PLACES = 8
"""How many maps there may be."""


def _compute(scores: Tensor, *maps: Tensor | None) -> Tensor:
    given = [x for x in maps if x is not None]
    weights = scores.softmax(0)
    first = given[0] * weights[0]
    pairs = zip(given[1:], weights[1:], strict=True)
    return reduce(lambda total, pair: torch.addcmul(total, *pair), pairs, first)


def _like(scores: Tensor, first: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(first, memory_format=torch.contiguous_format)


def _nothing_kept(scores: Tensor, *_: Any) -> Tensor:
    return scores.new_empty(0)


def why_no_kernel(scores: Tensor, first: Tensor, *_: Any) -> str | None:
    """Return why the kernel cannot run on these operands, or None if it can."""
    if first.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"the kernel computes in float32 at most, these are {first.dtype}"
    return None


register(
    FusedOperator(
        name="weighed",
        operands=("scores", "x0", "x1", *(f"x{k}?" for k in range(2, PLACES))),
        settings="",
        like=_like,
        saved=_nothing_kept,
        compute=_compute,
        why_no_kernel=why_no_kernel,
        kernel=launcher("weighed"),
        gradient=weighed_gradient,
    )
)
