"""Numbers that the definition and its lowering share."""

from __future__ import annotations

__all__ = ["FLOW_EPSILON"]

FLOW_EPSILON = 1e-6
"""Added to flows before they divide."""
