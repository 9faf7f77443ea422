"""``torch.ops.rewriter.pools``: several pools of one map as one operator of PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from rewriter.kernels.pools.gradient import pools_gradient
from rewriter.lower.fused_operator import FusedOperator, launcher, register

__all__ = ["WIDEST", "why_no_kernel"]

WIDEST = 4096
"""How many columns may be added up beside one another."""


def _compute(x: Tensor, *, over: str = "rows") -> Tensor:
    if over == "rows":
        return torch.stack([x.mean(1), x.amax(1)])
    return torch.cat([x.mean(2), x.mean(1)], 1)


def _like(x: Tensor, *, over: str = "rows") -> Tensor:
    count, rows, places = x.shape
    return x.new_empty((2, count, places) if over == "rows" else (count, rows + places))


def _nothing_kept(x: Tensor, *, over: str = "rows") -> Tensor:
    return x.new_empty(0)


def why_no_kernel(x: Tensor, *, over: str = "rows") -> str | None:
    """Return why the kernel cannot run on this operand, or None if it can."""
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"the kernel computes in float32 at most, this is {x.dtype}"
    if over == "lines" and x.shape[2] > WIDEST:
        return f"rows of {x.shape[2]} places are longer than {WIDEST}"
    return None


register(
    FusedOperator(
        name="pools",
        operands=("x",),
        settings="str over='rows'",
        like=_like,
        saved=_nothing_kept,
        compute=_compute,
        why_no_kernel=why_no_kernel,
        kernel=launcher("pools"),
        gradient=pools_gradient,
    )
)
