"""``torch.ops.rewriter.softmax``: softmax attention as one operator of PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from rewriter.algebra.sizes import Size
from rewriter.kernels.softmax.definition import band_mask, operands_of
from rewriter.kernels.softmax.gradient import Gradients, softmax_gradient
from rewriter.kernels.softmax.lowering import emit_dense
from rewriter.lower.emitter import EmptyRow
from rewriter.lower.fused_operator import FusedOperator, launcher, register
from rewriter.lower.run_form import run_form
from rewriter.sites.site import Band

__all__ = ["OPERANDS", "SETTINGS", "compute", "like_result", "row_statistics", "why_no_kernel"]

OPERANDS = ("q", "k", "v", "bias?", "sink?")
SETTINGS = (
    "float scale, SymInt offset=0, SymInt? left=None, SymInt? right=None, float? softcap=None,"
    ' str empty_row="never"'
)
"""``offset``, ``left`` and ``right`` are those of a `rewriter.sites.site.Band`."""


def like_result(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
    """Return an empty ``[B, H, I, E]`` that lies in memory token by token, as what reads it wants it."""
    B, H, queries = q.shape[:3]
    return q.new_empty(B, queries, H, v.shape[3]).transpose(1, 2)


def row_statistics(q: Tensor, *_: Any, **__: Any) -> Tensor:
    """Return an empty float32 ``[B, H, I]``: the logarithm of the sum of exponentials of each row."""
    return q.new_empty(q.shape[:3], dtype=torch.float32)


def why_no_kernel(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> str | None:
    """Return why the kernel cannot run on these operands, or None if it can."""
    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"the kernel computes in float32 at most, these are {q.dtype}"
    if max(q.shape[3], v.shape[3]) > 256:
        return f"heads have {q.shape[3]} and {v.shape[3]} features, the kernel's tiles hold 256 at most"
    return None


def compute(
    emit: Callable[..., Any],
    *operands: Any,
    scale: float,
    offset: int = 0,
    left: int | None = None,
    right: int | None = None,
    softcap: float | None = None,
    empty_row: str = "never",
) -> Tensor:
    """Return what a form emits for tensors, by `SETTINGS`; ``[B, H, I, E]``."""
    band = None if left is None and right is None else Band(Size.of(offset), left, right)
    row = cast(EmptyRow, empty_row)
    return run_form(emit, *operands, scale=scale, band=band, softcap=softcap, empty_row=row)


def _gradient(grad: Tensor, *operands: Any, **settings: Any) -> Gradients:
    x = operands_of(*operands, **settings)
    return softmax_gradient(x, band_mask(x.band, x.q.shape[2], x.k.shape[2]), grad)


register(
    FusedOperator(
        name="softmax",
        operands=OPERANDS,
        settings=SETTINGS,
        like=like_result,
        saved=row_statistics,
        compute=partial(compute, emit_dense),
        why_no_kernel=why_no_kernel,
        kernel=launcher("softmax"),
        gradient=_gradient,
        kernel_gradient=launcher("softmax", "backward"),
    )
)
