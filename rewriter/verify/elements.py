"""What the metrics are made of: arrays as float64, errors element by element, measures row by row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = [
    "apart",
    "as_rows",
    "cosine_of",
    "decibel",
    "error_of",
    "finite_in_both",
    "norm",
    "overlap",
    "quantiles_of",
    "ratio",
    "relative_errors",
    "rows_kl",
    "rows_topk",
    "wide",
]

Array = np.ndarray


def wide(x: Array) -> Array:
    """Return the numbers as float64; no copy where they are."""
    return np.asarray(x).astype(np.float64, copy=False)


def as_rows(x: Array) -> Array:
    """Return an array as a matrix whose rows are the last axis; a scalar is one row of one."""
    x = np.asarray(x)
    return x.reshape(-1, x.shape[-1]) if x.ndim and x.size else x.reshape(-1, 1)


def apart(x: Array, y: Array) -> Array:
    """Return where one of two float64 arrays is NaN, +inf or -inf and the other is not the same."""
    same = (np.isnan(x) & np.isnan(y)) | (np.isinf(x) & (x == y)) | (np.isfinite(x) & np.isfinite(y))
    return np.asarray(~same)


def finite_in_both(x: Array, y: Array) -> tuple[Array, Array]:
    """Return both arrays flattened, as float64, without the elements that are not finite in both."""
    x, y = wide(x).ravel(), wide(y).ravel()
    both = np.isfinite(x) & np.isfinite(y)
    return (x, y) if both.all() else (x[both], y[both])


def error_of(x: Array, y: Array) -> tuple[Array, Array]:
    """Return ``x - y`` and ``x`` where both are finite."""
    x, y = finite_in_both(x, y)
    return x - y, x


def relative_errors(error: Array, x: Array) -> Array:
    """Return ``|error| / |x|``: 0 where both are 0, inf where only ``x`` is."""
    error, x = np.abs(error), np.abs(x)
    return np.asarray(np.divide(error, x, out=np.where(error > 0.0, np.inf, 0.0), where=x > 0.0))


def quantiles_of(errors: Array, at: Sequence[float]) -> tuple[float, ...]:
    """Return quantiles that are elements themselves (no interpolation); 0 where there are none."""
    if not errors.size:
        return (0.0,) * len(at)
    return tuple(map(float, np.quantile(errors, at, method="inverted_cdf")))


def norm(x: Array) -> float:
    """Return the Euclidean norm."""
    return float(np.sqrt(x @ x))


def ratio(part: float, whole: float) -> float:
    """Return ``part / whole``: 0 where ``part`` is 0, inf where only ``whole`` is."""
    if part == 0.0:
        return 0.0
    return part / whole if whole > 0.0 else float("inf")


def decibel(relative: float) -> float:
    """Return ``-20 log₁₀`` of a relative error; inf where there is none."""
    return float(-20.0 * np.log10(relative)) if relative > 0.0 else float("inf")


def cosine_of(dot: float, x: float, y: float) -> float:
    """Return the cosine from an inner product and two norms; two zeros point the same way."""
    if x == 0.0 or y == 0.0:
        return 1.0 if x == y else 0.0
    return float(np.clip(dot / (x * y), -1.0, 1.0))


def overlap(x: Array, y: Array) -> tuple[float, float]:
    """Return ``Σ min(x, y)`` and ``Σ max(x, y)``, values below 0 counting as 0."""
    x, y = np.maximum(x, 0.0), np.maximum(y, 0.0)
    return float(np.minimum(x, y).sum()), float(np.maximum(x, y).sum())


def rows_kl(x: Array, y: Array) -> Array:
    """Return ``KL(softmax(x) ‖ softmax(y))`` of every row that has one, in nats.

    -inf at the same places in both stands for no probability; a row with anything else that is not finite, or
    with nothing finite, is left out.
    """
    x, y = as_rows(x), as_rows(y)
    finite, never = np.isfinite(x) & np.isfinite(y), np.isneginf(x) & np.isneginf(y)
    rows = (finite | never).all(axis=-1) & finite.any(axis=-1)
    if not rows.all():
        x, y, finite = x[rows], y[rows], finite[rows]
    p, q = _log_softmax(x), _log_softmax(y)
    change = np.subtract(p, q, out=np.zeros_like(p), where=finite)
    return np.asarray(np.maximum((np.exp(p) * change).sum(axis=-1), 0.0))


def rows_topk(x: Array, y: Array, k: int) -> Array:
    """Return of every row which share of the ``k`` largest of ``y`` are among those of ``x``.

    A row with NaN at the same places in both is left out; with NaN elsewhere it agrees with nothing.
    """
    x, y = as_rows(x), as_rows(y)
    if not x.size:
        return np.zeros(0)
    unordered = np.isnan(x).any(axis=-1) & (np.isnan(x) == np.isnan(y)).all(axis=-1)
    if unordered.any():
        x, y = x[~unordered], y[~unordered]
    k = min(k, x.shape[-1])
    if k == 1:
        chosen = y.argmax(axis=-1)[:, None]
        least = x.max(axis=-1, keepdims=True)
    else:
        chosen = np.argpartition(y, -k, axis=-1)[:, -k:]
        least = np.partition(x, -k, axis=-1)[:, -k][:, None]
    shares = (np.take_along_axis(x, chosen, axis=-1) >= least).mean(axis=-1)
    return np.where((np.isnan(x) | np.isnan(y)).any(axis=-1), 0.0, shares)


def _log_softmax(x: Array) -> Array:
    if not x.size:
        return x
    x = x - x.max(axis=-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=-1, keepdims=True)))
