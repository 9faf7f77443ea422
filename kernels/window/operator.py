"""``torch.ops.rewriter.window``: windowed attention as one operator of PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from rewriter.kernels.softmax.definition import operands_of
from rewriter.kernels.softmax.gradient import Gradients, softmax_gradient
from rewriter.kernels.softmax.operator import (
    OPERANDS,
    SETTINGS,
    compute,
    like_result,
    row_statistics,
    why_no_kernel,
)
from rewriter.kernels.window.definition import window_mask
from rewriter.kernels.window.form import Window
from rewriter.kernels.window.per_axis import joined
from rewriter.lower.fused_operator import FusedOperator, launcher, register

__all__: list[str] = []

WINDOW = (
    "SymInt[] window, SymInt[] stride, SymInt[] dilation, SymInt[] phase,"
    ' str borders="clip", SymInt[]? grid=None, SymInt sinks=0'
)
"""One number per axis; ``phase`` is the ``offset`` of the form. The others are those of the form."""


def _compute(
    *operands: Any,
    window: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    phase: Sequence[int],
    borders: str = "clip",
    grid: Sequence[int] | None = None,
    sinks: int = 0,
    **settings: Any,
) -> Tensor:
    sides = None if grid is None else joined(tuple(grid))
    sizes = {"window": window, "stride": stride, "dilation": dilation, "offset": phase}
    per_axis: dict[str, Any] = {name: joined(tuple(numbers)) for name, numbers in sizes.items()}
    form = Window(**per_axis, sinks=sinks, grid=sides, borders=borders)
    return compute(form.emit, *operands, **settings)


def _gradient(
    grad: Tensor,
    *operands: Any,
    window: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    phase: Sequence[int],
    borders: str = "clip",
    grid: Sequence[int] | None = None,
    sinks: int = 0,
    **settings: Any,
) -> Gradients:
    x = operands_of(*operands, **settings)
    seen = window_mask(
        x.q.shape[2],
        x.k.shape[2],
        tuple(window),
        sinks,
        None if grid is None else tuple(grid),
        x.band,
        stride=tuple(stride),
        dilation=tuple(dilation),
        offset=tuple(phase),
        borders=borders,
    )
    return softmax_gradient(replace(x, band=None), seen, grad)


register(
    FusedOperator(
        name="window",
        operands=OPERANDS,
        settings=f"{SETTINGS}, {WINDOW}",
        like=like_result,
        saved=row_statistics,
        compute=_compute,
        why_no_kernel=why_no_kernel,
        kernel=launcher("window"),
        gradient=_gradient,
        kernel_gradient=launcher("window", "backward"),
    )
)
