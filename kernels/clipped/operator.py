"""``torch.ops.rewriter.clipped``: attention by a clipped softmax as one operator of PyTorch."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from torch import Tensor

from rewriter.kernels.clipped.gradient import clipped_gradient
from rewriter.kernels.clipped.lowering import Stretch, emit_clipped
from rewriter.kernels.softmax.definition import Operands, band_mask
from rewriter.kernels.softmax.gradient import Gradients
from rewriter.kernels.softmax.operator import (
    OPERANDS,
    SETTINGS,
    band_of,
    like_result,
    row_statistics,
    why_no_kernel,
)
from rewriter.lower.emitter import EmptyRow
from rewriter.lower.fused_operator import FusedOperator, register
from rewriter.lower.run_form import run_form

__all__: list[str] = []


def _compute(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    sink: Tensor | None = None,
    *,
    scale: float,
    offset: int = 0,
    left: int | None = None,
    right: int | None = None,
    softcap: float | None = None,
    empty_row: str = "never",
    zeta: float = 1.0,
    gamma: float = 0.0,
    alpha: float = 0.0,
) -> Tensor:
    emit = partial(emit_clipped, stretch=Stretch(zeta, gamma, alpha))
    band, row = band_of(offset, left, right), cast(EmptyRow, empty_row)
    return run_form(emit, q, k, v, bias, sink, scale=scale, band=band, softcap=softcap, empty_row=row)


def _gradient(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    sink: Tensor | None = None,
    *,
    scale: float,
    offset: int = 0,
    left: int | None = None,
    right: int | None = None,
    softcap: float | None = None,
    empty_row: str = "never",
    zeta: float = 1.0,
    gamma: float = 0.0,
    alpha: float = 0.0,
) -> Gradients:
    band, keys = band_of(offset, left, right), k.shape[2]
    x, seen = Operands(q, k, v, bias, scale, band, softcap, sink), band_mask(band, q.shape[2], keys)
    return clipped_gradient(x, seen, grad, zeta=zeta, gamma=gamma - alpha / keys)


def _kernel(*operands: Any, **settings: Any) -> tuple[Tensor, Tensor]:
    from rewriter.kernels.clipped.fused_triton import forward

    return forward(*operands, **settings)


def _kernel_gradient(*operands: Any, **settings: Any) -> tuple[Tensor | None, ...]:
    from rewriter.kernels.clipped.fused_triton import backward

    return backward(*operands, **settings)


register(
    FusedOperator(
        name="clipped",
        operands=OPERANDS,
        settings=SETTINGS + ", float zeta=1.0, float gamma=0.0, float alpha=0.0",
        like=like_result,
        saved=row_statistics,
        compute=_compute,
        why_no_kernel=why_no_kernel,
        kernel=_kernel,
        gradient=_gradient,
        kernel_gradient=_kernel_gradient,
    )
)
