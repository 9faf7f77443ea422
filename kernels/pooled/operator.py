"""``torch.ops.rewriter.pooled``: attention to near keys and averages as one operator of PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rewriter.kernels.gathered.operator import nothing_kept
from rewriter.kernels.pooled.form import Pooled
from rewriter.kernels.pooled.gradient import pooled_gradient
from rewriter.kernels.softmax.definition import operands_of
from rewriter.kernels.softmax.gradient import Gradients
from rewriter.kernels.softmax.operator import OPERANDS, SETTINGS, compute, like_result, why_no_kernel
from rewriter.kernels.window.per_axis import joined
from rewriter.lower.fused_operator import FusedOperator, launcher, register

__all__: list[str] = []

POOLED = ", SymInt[] window, SymInt[] stride, SymInt[] pool, SymInt[]? grid=None, SymInt sinks=0"
"""One number per axis; the others are those of the form."""


def _compute(
    *operands: Any,
    window: Sequence[int],
    stride: Sequence[int],
    pool: Sequence[int],
    grid: Sequence[int] | None = None,
    sinks: int = 0,
    **settings: Any,
) -> Tensor:
    sides = None if grid is None else joined(tuple(grid))
    form = Pooled(joined(tuple(window)), joined(tuple(pool)), joined(tuple(stride)), sinks, sides)
    return compute(form.emit, *operands, **settings)


def _gradient(
    grad: Tensor,
    *operands: Any,
    window: Sequence[int],
    stride: Sequence[int],
    pool: Sequence[int],
    grid: Sequence[int] | None = None,
    sinks: int = 0,
    **settings: Any,
) -> Gradients:
    axes = {"window": tuple(window), "stride": tuple(stride), "pool": tuple(pool)}
    sides = None if grid is None else tuple(grid)
    return pooled_gradient(operands_of(*operands, **settings), grad, **axes, sinks=sinks, grid=sides)


register(
    FusedOperator(
        name="pooled",
        operands=OPERANDS,
        settings=SETTINGS + POOLED,
        like=like_result,
        saved=nothing_kept,
        compute=_compute,
        why_no_kernel=why_no_kernel,
        kernel=launcher("pooled"),
        gradient=_gradient,
    )
)
