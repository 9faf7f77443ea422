"""Activation functions as pointwise primitives."""

from __future__ import annotations

from rewriter.algebra.prims import Prim, constant, pointwise

__all__ = ["clip", "hard_sigmoid", "hard_swish", "silu"]


def silu(x: Prim, alpha: float = 1.0) -> Prim:
    """Return ``x · sigmoid(alpha · x)``."""
    inner = pointwise("mul", x, constant(alpha, x.dtype)) if alpha != 1 else x
    return pointwise("mul", x, pointwise("sigmoid", inner))


def clip(x: Prim, low: float, high: float) -> Prim:
    """Return ``min(max(x, low), high)``."""
    return pointwise("minimum", pointwise("maximum", x, constant(low, x.dtype)), constant(high, x.dtype))


def hard_sigmoid(x: Prim) -> Prim:
    """Return ``clip(x + 3, 0, 6) / 6``."""
    shifted = pointwise("add", x, constant(3.0, x.dtype))
    return pointwise("div", clip(shifted, 0.0, 6.0), constant(6.0, x.dtype))


def hard_swish(x: Prim) -> Prim:
    """Return ``x · hard_sigmoid(x)``."""
    return pointwise("mul", x, hard_sigmoid(x))
