"""Registers the fused kernels with PyTorch, as operators ``torch.ops.rewriter.*``.

Import this before `torch.export.load` opens a ``.pt2`` that was written for the target ``triton``;
`rewriter.load` does so by itself. On CUDA an operator launches its Triton kernel; on the CPU it computes
the same by PyTorch operators.

>>> import rewriter.operators, torch
>>> q = torch.ones(1, 2, 3, 4)
>>> out, _ = torch.ops.rewriter.softmax(q, q, q, scale=0.5, right=0)
>>> out.shape
torch.Size([1, 2, 3, 4])
"""

from __future__ import annotations

from importlib import import_module

__all__ = ["OPERATORS"]

OPERATORS = ("clipped", "gathered", "nearest", "pooled", "pools", "scan", "softmax", "weighed", "window")
"""Forms with a fused kernel: ``rewriter.kernels.<form>.operator`` registers each."""

for _form in OPERATORS:
    import_module(f"rewriter.kernels.{_form}.operator")
