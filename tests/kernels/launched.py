"""Operands of kernels as they come from models: in larger buffers, in any order, with NaN beyond."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from rewriter.forms import Canonical
from rewriter.kernels.softmax.definition import Operands

__all__ = ["assert_near", "in_padded_buffers", "poisoned", "tensors"]


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill with NaN what is allocated and not written: a kernel that leaves a hole is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(1).isnan()
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def in_padded_buffers(a: Canonical) -> Canonical:
    """Return the same operands as views of larger token-major buffers that are NaN everywhere else."""

    def padded(x: torch.Tensor | None) -> torch.Tensor | None:
        if x is None:
            return None
        B, H, tokens, width = x.shape
        buffer = torch.full((B, tokens + 5, H + 1, width + 3), math.nan, dtype=x.dtype)
        view = buffer.transpose(1, 2)[:, 1:, 2 : 2 + tokens, 1 : 1 + width]
        view.copy_(x)
        return view

    return replace(a, q=padded(a.q), k=padded(a.k), v=padded(a.v), bias=padded(a.bias), sink=padded(a.sink))


def tensors(x: Canonical | Operands) -> tuple[Any, ...]:
    """Return q, k, v, bias and sink."""
    return (x.q, x.k, x.v, x.bias, x.sink)


def assert_near(found: torch.Tensor | None, want: torch.Tensor | None, dtype: torch.dtype) -> None:
    """Compare at a few roundings of the dtype, relative to the largest entry."""
    if want is None or found is None:
        assert found is want
        return
    largest = float(want.float().nan_to_num(0.0).abs().max()) if want.numel() else 0.0
    bound = (16 if dtype == torch.float32 else 4) * torch.finfo(dtype).eps * max(largest, 1.0)
    torch.testing.assert_close(found.float(), want.float(), rtol=0, atol=bound, equal_nan=True)
