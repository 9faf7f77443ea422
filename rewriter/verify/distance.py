"""All measures of one output at once, and pooled over many inputs a block of rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from rewriter.verify.elements import (
    apart,
    as_rows,
    cosine_of,
    decibel,
    finite_in_both,
    overlap,
    quantiles_of,
    ratio,
    relative_errors,
    rows_kl,
    rows_topk,
    wide,
)
from rewriter.verify.metrics import QUANTILES

__all__ = ["Distance", "Tally", "distance"]

BLOCK = 1 << 22
"""Elements that `Tally` converts to float64 at a time."""

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class Distance:
    """All measures between one floating output and its reference, as defined in `rewriter.verify.metrics`.

    Parameters
    ----------
    pattern
        `pattern_mismatches`; anything but zero fails every gate.
    max_abs, max_rel, rel, sqnr, cos, kl, top1
        `max_abs`, `max_relative`, `relative`, `sqnr` in dB, `cosine`, `kl_divergence` in nats, `top1`.
    p50, p99, p999
        `quantiles` of the absolute error.
    elements
        Number of elements that were compared.
    top5, soft_iou
        `topk` of five, `soft_iou`.
    elem_rel, tol
        `elementwise_relative`, `allclose_tolerance`. With ``max_abs`` these are the smallest tolerances
        that would pass: ``atol=max_abs``, or ``rtol=elem_rel``, or ``atol=rtol=tol``.
    rel_p50, rel_p99, rel_p999
        `relative_quantiles`.
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
    top5: float
    soft_iou: float
    elem_rel: float
    tol: float
    rel_p50: float
    rel_p99: float
    rel_p999: float

    def to_dict(self) -> dict[str, float]:
        """Return the measures by name."""
        return asdict(self)


@dataclass(slots=True)
class Tally:
    """Pools the distance of many pairs of arrays, as if they were rows of one long array.

    Sums and rows are pooled exactly; of the quantiles the largest is kept, an upper bound. Long arrays are
    taken a block of rows at a time, so that float64 copies stay small. A tally is plain numbers
    (`state`), and one is added to another (`merge`) with the same result whatever lay between.
    """

    pattern: int = 0
    elements: int = 0
    rows: int = 0
    finite_rows: int = 0
    largest: float = 0.0
    peak: float = 0.0
    elem_rel: float = 0.0
    tol: float = 0.0
    kl: float = 0.0
    top1: float = 0.0
    top5: float = 0.0
    xx: float = 0.0
    yy: float = 0.0
    xy: float = 0.0
    dd: float = 0.0
    shared: float = 0.0
    whole: float = 0.0
    absolute: tuple[float, ...] = (0.0,) * len(QUANTILES)
    relative: tuple[float, ...] = (0.0,) * len(QUANTILES)

    def add(self, x: Array, y: Array) -> None:
        """Add one reference ``x`` and its counterpart ``y`` (same shape, floating)."""
        x, y = as_rows(x), as_rows(y)
        step = max(1, BLOCK // max(1, x.shape[-1]))
        for start in range(0, len(x), step):
            self.merge(_tally(wide(x[start : start + step]), wide(y[start : start + step])))

    def merge(self, other: Tally) -> None:
        """Add what another one holds."""
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if isinstance(mine, tuple):
                setattr(self, field.name, tuple(map(max, mine, theirs)))
            else:
                setattr(self, field.name, max(mine, theirs) if field.name in _LARGEST else mine + theirs)

    def state(self) -> list[Any]:
        """Return the numbers, in the order of the fields; `restored` is the way back."""
        return [getattr(self, field.name) for field in fields(self)]

    @classmethod
    def restored(cls, state: Sequence[Any]) -> Tally:
        """Return the tally that `state` was taken of.

        Raises
        ------
        TypeError, ValueError
            When it is no such state.
        """
        tally = cls()
        for field, value in zip(fields(cls), state, strict=True):
            like = getattr(tally, field.name)
            if isinstance(like, tuple):
                value = tuple(map(float, value))
                if len(value) != len(like):
                    raise ValueError(f"{field.name} has {len(value)} numbers, not {len(like)}")
            else:
                value = type(like)(value)
            setattr(tally, field.name, value)
        return tally

    def distance(self) -> Distance:
        """Return the pooled distance."""
        rel = ratio(self.dd**0.5, self.xx**0.5)
        p50, p99, p999 = self.absolute
        rel_p50, rel_p99, rel_p999 = self.relative
        return Distance(
            pattern=self.pattern,
            max_abs=self.largest,
            max_rel=ratio(self.largest, self.peak),
            rel=rel,
            sqnr=decibel(rel),
            cos=cosine_of(self.xy, self.xx**0.5, self.yy**0.5) if self.dd else 1.0,
            kl=self.kl / self.finite_rows if self.finite_rows else 0.0,
            top1=self.top1 / self.rows if self.rows else 1.0,
            p50=p50,
            p99=p99,
            p999=p999,
            elements=self.elements,
            top5=self.top5 / self.rows if self.rows else 1.0,
            soft_iou=self.shared / self.whole if self.whole > 0.0 else 1.0,
            elem_rel=self.elem_rel,
            tol=self.tol,
            rel_p50=rel_p50,
            rel_p99=rel_p99,
            rel_p999=rel_p999,
        )


_LARGEST = frozenset({"largest", "peak", "elem_rel", "tol"})


def distance(x: Array, y: Array) -> Distance:
    """Return all measures of one pair."""
    tally = Tally()
    tally.add(x, y)
    return tally.distance()


def _tally(x: Array, y: Array) -> Tally:
    """Return what one block of rows, as float64, adds."""
    kl, one, five = rows_kl(x, y), rows_topk(x, y, 1), rows_topk(x, y, 5)
    pattern, elements = int(np.count_nonzero(apart(x, y))), x.size
    x, y = finite_in_both(x, y)
    error, size = np.abs(x - y), np.abs(x)
    ratios = relative_errors(error, size)
    shared, whole = overlap(x, y)
    return Tally(
        pattern=pattern,
        elements=elements,
        rows=one.size,
        finite_rows=kl.size,
        largest=float(error.max(initial=0.0)),
        peak=float(size.max(initial=0.0)),
        elem_rel=float(ratios.max(initial=0.0)),
        tol=float((error / (1.0 + size)).max(initial=0.0)),
        kl=float(kl.sum()),
        top1=float(one.sum()),
        top5=float(five.sum()),
        xx=float(x @ x),
        yy=float(y @ y),
        xy=float(x @ y),
        dd=float(error @ error),
        shared=shared,
        whole=whole,
        absolute=quantiles_of(error, QUANTILES),
        relative=quantiles_of(ratios, QUANTILES),
    )
