"""``torch.ops.rewriter.gathered``: attention of a few queries to many keys as one operator of PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rewriter.kernels.softmax.definition import Operands
from rewriter.kernels.softmax.gradient import softmax_gradient
from rewriter.kernels.softmax.lowering import emit_dense
from rewriter.kernels.softmax.operator import like_result, why_no_kernel
from rewriter.lower.emitter import EmptyRow
from rewriter.lower.fused_operator import FusedOperator, launcher, register
from rewriter.lower.run_form import run_form

__all__ = ["nothing_kept"]


def nothing_kept(q: Tensor, *_: Any, **__: Any) -> Tensor:
    """Return an empty tensor: the gradient, of few queries, needs nothing but the operands."""
    return q.new_empty(0)


def _compute(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, scale: float) -> Tensor:
    row: EmptyRow = "never" if bias is None else "zero"
    return run_form(emit_dense, q, k, v, bias, scale=scale, empty_row=row)


def _gradient(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, scale: float
) -> tuple[Tensor | None, ...]:
    every = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
    return softmax_gradient(Operands(q, k, v, bias, scale), every, grad)[:4]


register(
    FusedOperator(
        name="gathered",
        operands=("q", "k", "v", "bias?"),
        settings="float scale",
        like=like_result,
        saved=nothing_kept,
        compute=_compute,
        why_no_kernel=why_no_kernel,
        kernel=launcher("gathered"),
        gradient=_gradient,
    )
)
