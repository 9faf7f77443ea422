"""How far two arrays are apart: plain functions with their definitions, computed in float64.

In all of them ``x`` is the reference and ``y`` what is measured. NaN and infinities are compared as a
pattern, by `pattern_mismatches`; the distances are taken over the elements that are finite in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

__all__ = [
    "Distance",
    "Tally",
    "agreement",
    "cosine",
    "distance",
    "kl_divergence",
    "max_abs",
    "max_relative",
    "pattern_mismatches",
    "quantiles",
    "relative",
    "sqnr",
    "top1",
]

QUANTILES = (0.5, 0.99, 0.999)

BLOCK = 1 << 22
"""Elements that `Tally` converts to float64 at a time."""

Array = np.ndarray


def is_floating(dtype: np.dtype) -> bool:
    """Whether a dtype is real floating point; bfloat16 and the other ``ml_dtypes`` count."""
    return dtype.kind == "f" or (dtype.kind == "V" and "float" in dtype.name)


def pattern_mismatches(x: Array, y: Array) -> int:
    """Return at how many places one is NaN, +inf or -inf and the other is not the same."""
    x, y = _wide(x), _wide(y)
    same = (np.isnan(x) & np.isnan(y)) | (np.isinf(x) & (x == y)) | (np.isfinite(x) & np.isfinite(y))
    return int(same.size - np.count_nonzero(same))


def max_abs(x: Array, y: Array) -> float:
    """Return ``max |x - y|``."""
    x, y = _finite(x, y)
    return float(np.abs(x - y).max(initial=0.0))


def max_relative(x: Array, y: Array) -> float:
    """Return ``max |x - y| / max |x|``: the largest error in units of the largest value."""
    x, y = _finite(x, y)
    return _ratio(float(np.abs(x - y).max(initial=0.0)), float(np.abs(x).max(initial=0.0)))


def relative(x: Array, y: Array) -> float:
    """Return ``‖x - y‖₂ / ‖x‖₂``."""
    x, y = _finite(x, y)
    return _ratio(_norm(x - y), _norm(x))


def quantiles(x: Array, y: Array, at: Sequence[float] = QUANTILES) -> tuple[float, ...]:
    """Return quantiles of ``|x - y|``."""
    x, y = _finite(x, y)
    return tuple(map(float, np.quantile(np.abs(x - y), at))) if x.size else (0.0,) * len(at)


def sqnr(x: Array, y: Array) -> float:
    """Return the signal to noise ratio ``10 log10(Σx² / Σ(x - y)²)`` in dB; inf when they are equal."""
    return _decibel(relative(x, y))


def cosine(x: Array, y: Array) -> float:
    """Return the cosine of the angle between the arrays, flattened; 1 when both are all zero."""
    x, y = _finite(x, y)
    return _cosine(float(x @ y), _norm(x), _norm(y)) if (x != y).any() else 1.0


def kl_divergence(x: Array, y: Array) -> float:
    """Return the mean over rows of ``KL(softmax(x) ‖ softmax(y))`` in nats, rows being the last axis.

    A row that is not finite in both is left out.
    """
    rows = _rows_kl(x, y)
    return float(rows.mean()) if rows.size else 0.0


def top1(x: Array, y: Array) -> float:
    """Return the share of rows (last axis) where the largest of ``y`` is a largest of ``x``.

    A tie in ``x`` accepts any of the tied; a row with NaN agrees with nothing.
    """
    hits = _rows_top1(x, y)
    return float(hits.mean()) if hits.size else 1.0


def agreement(x: Array, y: Array) -> float:
    """Return the share of equal elements: the measure for integer and boolean outputs."""
    return float(np.mean(np.asarray(x) == np.asarray(y))) if np.size(x) else 1.0


@dataclass(frozen=True, slots=True)
class Distance:
    """All measures between one floating output and its reference.

    Parameters
    ----------
    pattern
        `pattern_mismatches`; anything but zero fails every gate.
    max_abs, max_rel, rel, sqnr, cos, kl, top1
        As the functions of this module.
    p50, p99, p999
        Quantiles of the absolute error.
    elements
        Number of elements that were compared.
    """

    pattern: int
    max_abs: float
    max_rel: float
    rel: float
    sqnr: float
    cos: float
    kl: float
    top1: float
    p50: float
    p99: float
    p999: float
    elements: int

    def to_dict(self) -> dict[str, float]:
        """Return the measures by name."""
        return asdict(self)


class Tally:
    """Pools the distance of many pairs of arrays, as if they were rows of one long array.

    Sums and rows are pooled exactly; of the quantiles the largest is kept, an upper bound. Long
    arrays are taken a block of rows at a time, so that float64 copies stay small.
    """

    def __init__(self) -> None:
        self._pattern = self._elements = self._rows = self._hits = self._kl_rows = 0
        self._max = self._top = self._kl = self._xx = self._yy = self._xy = self._dd = 0.0
        self._quantiles: tuple[float, ...] = (0.0,) * len(QUANTILES)

    def add(self, x: Array, y: Array) -> None:
        """Add one reference ``x`` and its counterpart ``y`` (same shape, floating)."""
        x, y = _rows(x), _rows(y)
        step = max(1, BLOCK // max(1, x.shape[-1]))
        for start in range(0, len(x), step):
            self._add(x[start : start + step], y[start : start + step])

    def _add(self, x: Array, y: Array) -> None:
        self._pattern += pattern_mismatches(x, y)
        self._elements += int(np.size(x))
        kl, hits = _rows_kl(x, y), _rows_top1(x, y)
        self._kl, self._kl_rows = self._kl + float(kl.sum()), self._kl_rows + kl.size
        self._hits, self._rows = self._hits + int(hits.sum()), self._rows + hits.size
        a, b = _finite(x, y)
        error = np.abs(a - b)
        self._max = max(self._max, float(error.max(initial=0.0)))
        self._top = max(self._top, float(np.abs(a).max(initial=0.0)))
        self._xx, self._yy = self._xx + float(a @ a), self._yy + float(b @ b)
        self._xy, self._dd = self._xy + float(a @ b), self._dd + float(error @ error)
        new = tuple(map(float, np.quantile(error, QUANTILES))) if error.size else self._quantiles
        self._quantiles = tuple(map(max, self._quantiles, new))

    def distance(self) -> Distance:
        """Return the pooled distance."""
        rel = _ratio(self._dd**0.5, self._xx**0.5)
        p50, p99, p999 = self._quantiles
        return Distance(
            pattern=self._pattern,
            max_abs=self._max,
            max_rel=_ratio(self._max, self._top),
            rel=rel,
            sqnr=_decibel(rel),
            cos=_cosine(self._xy, self._xx**0.5, self._yy**0.5) if self._dd else 1.0,
            kl=self._kl / self._kl_rows if self._kl_rows else 0.0,
            top1=self._hits / self._rows if self._rows else 1.0,
            p50=p50,
            p99=p99,
            p999=p999,
            elements=self._elements,
        )


def distance(x: Array, y: Array) -> Distance:
    """Return all measures of one pair."""
    tally = Tally()
    tally.add(x, y)
    return tally.distance()


def _wide(x: Array) -> Array:
    return np.asarray(x).astype(np.float64)


def _finite(x: Array, y: Array) -> tuple[Array, Array]:
    x, y = _wide(x).ravel(), _wide(y).ravel()
    both = np.isfinite(x) & np.isfinite(y)
    return (x, y) if both.all() else (x[both], y[both])


def _norm(x: Array) -> float:
    return float(np.sqrt(x @ x))


def _ratio(part: float, whole: float) -> float:
    if part == 0.0:
        return 0.0
    return part / whole if whole > 0.0 else float("inf")


def _decibel(rel: float) -> float:
    return float(-20.0 * np.log10(rel)) if rel > 0.0 else float("inf")


def _cosine(dot: float, x: float, y: float) -> float:
    if x == 0.0 or y == 0.0:
        return 1.0 if x == y else 0.0
    return float(np.clip(dot / (x * y), -1.0, 1.0))


def _rows(x: Array) -> Array:
    x = np.asarray(x)
    return x.reshape(-1, x.shape[-1]) if x.ndim and x.size else x.reshape(-1, 1)


def _rows_kl(x: Array, y: Array) -> Array:
    x, y = _rows(_wide(x)), _rows(_wide(y))
    finite = np.isfinite(x).all(axis=-1) & np.isfinite(y).all(axis=-1)
    p, q = _log_softmax(x[finite]), _log_softmax(y[finite])
    return np.asarray(np.maximum((np.exp(p) * (p - q)).sum(axis=-1), 0.0))


def _log_softmax(x: Array) -> Array:
    if not x.size:
        return x
    x = x - x.max(axis=-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=-1, keepdims=True)))


def _rows_top1(x: Array, y: Array) -> Array:
    x, y = _rows(_wide(x)), _rows(_wide(y))
    if not x.size:
        return np.zeros(0, dtype=bool)
    chosen = np.take_along_axis(x, y.argmax(axis=-1)[:, None], axis=-1)[:, 0]
    return np.asarray((chosen == x.max(axis=-1)) & ~np.isnan(y).any(axis=-1))
