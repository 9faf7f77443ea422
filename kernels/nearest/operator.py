"""``torch.ops.rewriter.nearest``: the nearest token of another set as one operator of PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rewriter.kernels.nearest.definition import by_settings
from rewriter.lower.fused_operator import FusedOperator, launcher, register

__all__: list[str] = []

MOST = 1 << 24
"""Tokens whose places are told apart in float32."""


def _like(first: Tensor, *_: Any) -> Tensor:
    wide = torch.promote_types(first.dtype, torch.float32)
    return first.new_empty((first.shape[0], 2, first.shape[1]), dtype=wide)


def _nothing_kept(first: Tensor, *_: Any) -> Tensor:
    return first.new_empty(0)


def _why_no_kernel(first: Tensor, second: Tensor, *_: Any) -> str | None:
    if first.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"the kernel computes in float32 at most, these are {first.dtype}"
    if first.shape[2] > 256:
        return f"tokens have {first.shape[2]} features, the kernel's tiles hold 256 at most"
    if second.shape[1] > MOST:
        return f"there are {second.shape[1]} tokens, the kernel tells {MOST} apart"
    return None


register(
    FusedOperator(
        name="nearest",
        operands=("first", "second", "first_term", "second_term", "first_size?", "second_size?"),
        settings="",
        like=_like,
        saved=_nothing_kept,
        compute=by_settings,
        why_no_kernel=_why_no_kernel,
        kernel=launcher("nearest"),
    )
)
