"""How far two arrays are apart: plain functions with their definitions, computed in float64.

In all of them ``x`` is the reference and ``y`` what is measured, of one shape and of any real dtype.
NaN and infinities are compared as a pattern, by `pattern_mismatches`: NaN equals NaN and an infinity
equals itself. The distances are taken over the elements that are finite in both, those of rows over the
rows that are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rewriter.verify.elements import (
    apart,
    cosine_of,
    decibel,
    error_of,
    finite_in_both,
    norm,
    overlap,
    quantiles_of,
    ratio,
    relative_errors,
    rows_kl,
    rows_topk,
    wide,
)

__all__ = [
    "QUANTILES",
    "Element",
    "agreement",
    "allclose_tolerance",
    "cosine",
    "elementwise_relative",
    "is_floating",
    "kl_divergence",
    "max_abs",
    "max_relative",
    "pattern_mismatches",
    "quantiles",
    "relative",
    "relative_quantiles",
    "soft_iou",
    "sqnr",
    "top1",
    "topk",
    "worst_element",
]

QUANTILES = (0.5, 0.99, 0.999)

Array = np.ndarray


def is_floating(dtype: np.dtype) -> bool:
    """Whether a dtype is real floating point; bfloat16 and the other ``ml_dtypes`` count."""
    return dtype.kind == "f" or (dtype.kind == "V" and "float" in dtype.name)


def pattern_mismatches(x: Array, y: Array) -> int:
    """Return at how many places one is NaN, +inf or -inf and the other is not the same.

    >>> pattern_mismatches(np.array([np.nan, np.inf, 1.0]), np.array([np.nan, -np.inf, 2.0]))
    1
    """
    return int(np.count_nonzero(apart(wide(x), wide(y))))


def max_abs(x: Array, y: Array) -> float:
    """Return the largest absolute error ``max |x - y|``, in the unit of ``x``.

    It is also the smallest ``atol`` with which ``numpy.allclose(y, x, rtol=0, atol=atol)`` holds.

    >>> max_abs(np.array([1.0, 2.0]), np.array([1.5, 2.0]))
    0.5
    """
    return float(np.abs(error_of(x, y)[0]).max(initial=0.0))


def max_relative(x: Array, y: Array) -> float:
    """Return ``max |x - y| / max |x|``: the largest error in units of the largest value.

    >>> max_relative(np.array([1.0, 4.0]), np.array([2.0, 4.0]))
    0.25
    """
    error, x = error_of(x, y)
    return ratio(float(np.abs(error).max(initial=0.0)), float(np.abs(x).max(initial=0.0)))


def elementwise_relative(x: Array, y: Array) -> float:
    """Return ``max (|x - y| / |x|)``, element by element; 0 / 0 is 0, and any other error of a zero inf.

    It is also the smallest ``rtol`` with which ``numpy.allclose(y, x, rtol=rtol, atol=0)`` holds.

    >>> elementwise_relative(np.array([1.0, 4.0]), np.array([1.5, 4.0]))
    0.5
    >>> elementwise_relative(np.array([0.0]), np.array([1e-9]))
    inf
    """
    return float(relative_errors(*error_of(x, y)).max(initial=0.0))


def allclose_tolerance(x: Array, y: Array) -> float:
    """Return ``max (|x - y| / (1 + |x|))``: the smallest tolerance, absolute and relative at once.

    It is the smallest ``t`` with which ``numpy.allclose(y, x, rtol=t, atol=t)`` holds.

    >>> allclose_tolerance(np.array([1.0, 3.0]), np.array([1.0, 2.0]))
    0.25
    """
    error, x = error_of(x, y)
    return float((np.abs(error) / (1.0 + np.abs(x))).max(initial=0.0))


def relative(x: Array, y: Array) -> float:
    """Return the relative error in the Euclidean norm, ``‖x - y‖₂ / ‖x‖₂``.

    >>> relative(np.array([3.0, 4.0]), np.array([3.0, 5.0]))
    0.2
    """
    error, x = error_of(x, y)
    return ratio(norm(error), norm(x))


def quantiles(x: Array, y: Array, at: Sequence[float] = QUANTILES) -> tuple[float, ...]:
    """Return quantiles of the absolute error: at ``q``, the smallest that a share ``q`` does not exceed.

    >>> quantiles(np.zeros(4), np.array([0.0, 1.0, 2.0, 9.0]), (0.5, 1.0))
    (1.0, 9.0)
    """
    return quantiles_of(np.abs(error_of(x, y)[0]), at)


def relative_quantiles(x: Array, y: Array, at: Sequence[float] = QUANTILES) -> tuple[float, ...]:
    """Return quantiles of ``|x - y| / |x|``; see `quantiles` and `elementwise_relative`.

    >>> relative_quantiles(np.array([1.0, 2.0]), np.array([2.0, 2.0]), (0.5, 1.0))
    (0.0, 1.0)
    """
    return quantiles_of(relative_errors(*error_of(x, y)), at)


def sqnr(x: Array, y: Array) -> float:
    """Return the signal to quantisation noise ratio ``10 log₁₀(Σ x² / Σ (x - y)²)`` in dB; inf when equal.

    >>> sqnr(np.array([3.0, 4.0]), np.array([3.0, 4.5]))
    20.0
    """
    return decibel(relative(x, y))


def cosine(x: Array, y: Array) -> float:
    """Return ``x·y / (‖x‖₂ ‖y‖₂)`` of the flattened arrays; 1 when both are all zero, 0 when one is.

    >>> cosine(np.array([1.0, 0.0]), np.array([1.0, 1.0]))  # doctest: +ELLIPSIS
    0.7071...
    """
    x, y = finite_in_both(x, y)
    return cosine_of(float(x @ y), norm(x), norm(y)) if (x != y).any() else 1.0


def kl_divergence(x: Array, y: Array) -> float:
    """Return the mean over rows of ``KL(softmax(x) ‖ softmax(y))`` in nats, rows being the last axis.

    ``KL(p ‖ q) = Σ p ln(p / q)`` (Kullback and Leibler 1951). -inf at the same places in both stands for no
    probability; a row with anything else that is not finite is left out. Rows are taken for logits: of
    probabilities, give the logarithm.

    >>> kl_divergence(np.array([[1.0, 2.0]]), np.array([[6.0, 7.0]]))
    0.0
    """
    rows = rows_kl(wide(x), wide(y))
    return float(rows.mean()) if rows.size else 0.0


def top1(x: Array, y: Array) -> float:
    """Return the share of rows (last axis) where the largest of ``y`` is a largest of ``x``; see `topk`.

    >>> top1(np.array([[1.0, 2.0], [4.0, 3.0]]), np.array([[5.0, 6.0], [7.0, 8.0]]))
    0.5
    """
    return topk(x, y, 1)


def topk(x: Array, y: Array, k: int) -> float:
    """Return which share of the ``k`` largest of each row of ``y`` are among the ``k`` largest of ``x``.

    Rows are the last axis; of a row shorter than ``k`` all are. A tie in ``x`` accepts any of the tied. A
    row with NaN at the same places in both says nothing and is left out; with NaN elsewhere it agrees with
    nothing. 1 where there is no row.

    >>> topk(np.array([[1.0, 2.0, 3.0]]), np.array([[3.0, 1.0, 2.0]]), 2)
    0.5
    """
    hits = rows_topk(wide(x), wide(y), k)
    return float(hits.mean()) if hits.size else 1.0


def soft_iou(x: Array, y: Array) -> float:
    """Return ``Σ min(x, y) / Σ max(x, y)``: intersection over union of two maps whose values are shares.

    For maps of zeros and ones it is the intersection over union of the sets; in general the similarity
    of Ružička (1958), also called weighted Jaccard index. Values below 0 count as 0; 1 when both are
    empty. It says something of maps (saliency, masks, attention, probabilities) only.

    >>> soft_iou(np.array([1.0, 0.5, 0.0]), np.array([0.5, 0.5, 0.5]))
    0.5
    """
    shared, whole = overlap(*finite_in_both(x, y))
    return shared / whole if whole > 0.0 else 1.0


def agreement(x: Array, y: Array) -> float:
    """Return the share of equal elements: the measure for integer and boolean outputs; 1 if there are none.

    >>> agreement(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]))
    0.75
    """
    return float(np.mean(np.asarray(x) == np.asarray(y))) if np.size(x) else 1.0


@dataclass(frozen=True, slots=True)
class Element:
    """One element of an output in two models.

    Parameters
    ----------
    index
        Where, one number per axis.
    original, rewritten
        Its value in both; an integer as one.
    """

    index: tuple[int, ...]
    original: float
    rewritten: float

    def __str__(self) -> str:
        at = ", ".join(map(str, self.index))
        return f"[{at}] is {self.original:.6g} in the original and {self.rewritten:.6g} in the other"


def worst_element(x: Array, y: Array) -> Element | None:
    """Return where ``x`` and ``y`` (same shape) are furthest apart, or None where they are equal.

    An element that is NaN or infinite in one only is further apart than any number; the first of
    equals is returned.

    >>> worst_element(np.array([[1.0, 2.0]]), np.array([[1.0, np.nan]]))
    Element(index=(0, 1), original=2.0, rewritten=nan)
    """
    x, y = np.asarray(x), np.asarray(y)
    if not x.size:
        return None
    if is_floating(x.dtype):
        a, b = wide(x), wide(y)
        both = np.isfinite(a) & np.isfinite(b)
        error = np.where(apart(a, b), np.inf, np.abs(np.where(both, a, 0.0) - np.where(both, b, 0.0)))
    else:
        error = (x != y).astype(np.float64)
    at = int(error.argmax())
    if error.flat[at] == 0.0:
        return None
    index = tuple(map(int, np.unravel_index(at, x.shape)))
    return Element(index, x[index].item(), y[index].item())
