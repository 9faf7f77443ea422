"""Numbers as a dtype holds them."""

from __future__ import annotations

import numpy as np

__all__ = ["finite_in"]


def finite_in(array: np.ndarray | float | bool, dtype: str) -> np.ndarray:
    """Return numbers that stay finite in ``dtype``: those beyond its range become its largest or lowest.

    A number that hides a key must not become minus infinity: a query that sees no key would give NaN.

    Examples
    --------
    >>> finite_in(np.array([-1e30, 2.0, -np.inf]), "float16").tolist()
    [-65504.0, 2.0, -inf]
    """
    known = np.asarray(array)
    if dtype != "float16" or known.dtype.kind != "f":
        return known
    largest = float(np.finfo(np.float16).max)
    return np.where(np.isfinite(known), np.clip(known, -largest, largest), known)
