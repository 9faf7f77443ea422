"""Numbers that the definition and its lowering share."""

from __future__ import annotations

__all__ = ["VARIANCE_EPSILON"]

VARIANCE_EPSILON = 1e-6
"""Added to the variance of a token's features before they are divided by its root."""
