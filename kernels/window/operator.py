"""``torch.ops.rewriter.window``: windowed attention as one operator of PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor

from rewriter.kernels.softmax.definition import Operands
from rewriter.kernels.softmax.gradient import Gradients, softmax_gradient
from rewriter.kernels.softmax.operator import (
    OPERANDS,
    SETTINGS,
    band_of,
    like_result,
    row_statistics,
    why_no_kernel,
)
from rewriter.kernels.window.definition import window_mask
from rewriter.kernels.window.form import Window
from rewriter.kernels.window.per_axis import joined
from rewriter.lower.emitter import EmptyRow
from rewriter.lower.fused_operator import FusedOperator, register
from rewriter.lower.run_form import run_form

__all__: list[str] = []

WINDOW = (
    "SymInt[] window, SymInt[] stride, SymInt[] dilation, SymInt[] phase,"
    ' str borders="clip", SymInt[]? grid=None, SymInt sinks=0'
)
"""One number per axis; ``phase`` is the ``offset`` of the form. The others are those of the form."""


def _compute(
    *operands: Any,
    scale: float,
    offset: int = 0,
    left: int | None = None,
    right: int | None = None,
    softcap: float | None = None,
    empty_row: str = "never",
    window: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    phase: Sequence[int],
    borders: str = "clip",
    grid: Sequence[int] | None = None,
    sinks: int = 0,
) -> Tensor:
    form = Window(
        joined(tuple(window)),
        sinks,
        None if grid is None else joined(tuple(grid)),
        joined(tuple(stride)),
        joined(tuple(dilation)),
        joined(tuple(phase)),
        borders,
    )
    return run_form(
        form.emit,
        *operands,
        scale=scale,
        band=band_of(offset, left, right),
        softcap=softcap,
        empty_row=cast(EmptyRow, empty_row),
    )


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
    window: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    phase: Sequence[int],
    borders: str = "clip",
    grid: Sequence[int] | None = None,
    sinks: int = 0,
) -> Gradients:
    seen = window_mask(
        q.shape[2],
        k.shape[2],
        tuple(window),
        sinks,
        None if grid is None else tuple(grid),
        band_of(offset, left, right),
        stride=tuple(stride),
        dilation=tuple(dilation),
        offset=tuple(phase),
        borders=borders,
    )
    return softmax_gradient(Operands(q, k, v, bias, scale, None, softcap, sink), seen, grad)


def _kernel(*operands: Any, **settings: Any) -> tuple[Tensor, Tensor]:
    from rewriter.kernels.window.fused_triton import forward

    return forward(*operands, **settings)


def _kernel_gradient(*operands: Any, **settings: Any) -> tuple[Tensor | None, ...]:
    from rewriter.kernels.window.fused_triton import backward

    return backward(*operands, **settings)


register(
    FusedOperator(
        name="window",
        operands=OPERANDS,
        settings=f"{SETTINGS}, {WINDOW}",
        like=like_result,
        saved=row_statistics,
        compute=_compute,
        why_no_kernel=why_no_kernel,
        kernel=_kernel,
        gradient=_gradient,
        kernel_gradient=_kernel_gradient,
    )
)
