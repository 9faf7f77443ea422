"""``torch.ops.rewriter.scan``: faded causal sums as one operator of PyTorch."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from rewriter.kernels.scan.definition import scan_in_chunks
from rewriter.kernels.scan.gradient import Gradients, scan_gradient
from rewriter.kernels.softmax.operator import like_result
from rewriter.lower.fused_operator import FusedOperator, launcher, register

__all__ = ["LARGEST"]

LARGEST = 256
"""Features of a head that the state of the kernel holds."""


def _nothing(q: Tensor, *_: Any, **__: Any) -> Tensor:
    return q.new_empty(0)


def _why_no_kernel(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None = None, **_: Any) -> str | None:
    """Return why the kernel cannot run on these operands, or None if it can."""
    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"the kernel computes in float32 at most, these are {q.dtype}"
    if q.shape[3] > LARGEST or v.shape[3] > LARGEST:
        return f"heads have {q.shape[3]} and {v.shape[3]} features, the kernel holds {LARGEST} at most"
    return None


def _compute(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None = None, *, offset: int = 0) -> Tensor:
    per_feature = log_decay is not None and log_decay.shape[3] > 1
    return scan_in_chunks(q, k, v, log_decay, offset, chunk=16 if per_feature else 64).to(q.dtype)


def _gradient(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None = None, *, offset: int = 0
) -> Gradients:
    return scan_gradient(grad, q, k, v, log_decay, offset, partial(scan_in_chunks, chunk=16))


register(
    FusedOperator(
        name="scan",
        operands=("q", "k", "v", "log_decay?"),
        settings="SymInt offset=0",
        like=like_result,
        saved=_nothing,
        compute=_compute,
        why_no_kernel=_why_no_kernel,
        kernel=launcher("scan"),
        gradient=_gradient,
        kernel_gradient=launcher("scan", "backward"),
    )
)
