"""``torch.ops.rewriter.clipped``: attention by a clipped softmax as one operator of PyTorch."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from rewriter.kernels.clipped.gradient import clipped_gradient
from rewriter.kernels.clipped.lowering import Stretch, emit_clipped
from rewriter.kernels.softmax.definition import band_mask, operands_of
from rewriter.kernels.softmax.gradient import Gradients
from rewriter.kernels.softmax.operator import (
    OPERANDS,
    SETTINGS,
    compute,
    like_result,
    row_statistics,
    why_no_kernel,
)
from rewriter.lower.fused_operator import FusedOperator, launcher, register

__all__: list[str] = []


def _compute(
    *operands: Any, zeta: float = 1.0, gamma: float = 0.0, alpha: float = 0.0, **settings: Any
) -> Tensor:
    return compute(partial(emit_clipped, stretch=Stretch(zeta, gamma, alpha)), *operands, **settings)


def _gradient(
    grad: Tensor,
    *operands: Any,
    zeta: float = 1.0,
    gamma: float = 0.0,
    alpha: float = 0.0,
    **settings: Any,
) -> Gradients:
    x = operands_of(*operands, **settings)
    keys = x.k.shape[2]
    seen = band_mask(x.band, x.q.shape[2], keys)
    return clipped_gradient(x, seen, grad, zeta=zeta, gamma=gamma - alpha / keys)


register(
    FusedOperator(
        name="clipped",
        operands=OPERANDS,
        settings=SETTINGS + ", float zeta=1.0, float gamma=0.0, float alpha=0.0",
        like=like_result,
        saved=row_statistics,
        compute=_compute,
        why_no_kernel=why_no_kernel,
        kernel=launcher("clipped"),
        gradient=_gradient,
        kernel_gradient=launcher("clipped", "backward"),
    )
)
