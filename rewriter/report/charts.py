"""Small pictures as SVG that take their colours from the page: light, dark and print need no second one.

They stretch to the room that they have: strokes keep their width, dots stay round, and all text is outside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rewriter.report.markup import element
from rewriter.report.text import figure, milliseconds

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["Plot", "Series", "bars", "depth", "strip"]

TICKS = 5
"""Labels on an axis, about."""


@dataclass(frozen=True, slots=True)
class Series:
    """Values in order, each with the name that is shown when it is pointed at.

    Parameters
    ----------
    style
        ``before`` or ``after``: the colour.
    values
        None where nothing is known.
    """

    style: str
    values: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot and the labels around it.

    Parameters
    ----------
    picture
        The SVG.
    rows, columns
        Labels with their places in percent, from the top and from the left.
    """

    picture: Markup
    rows: tuple[tuple[str, float], ...]
    columns: tuple[tuple[str, float], ...]


def bars(values: Sequence[float], names: Sequence[str], label: str) -> Markup:
    """Return a sparkline: one bar per value from zero, the largest in full colour."""
    finite = [v if math.isfinite(v) else 0.0 for v in values]
    top = max(finite, default=0.0) or 1.0
    drawn = [
        element(
            "rect",
            element("title", f"{name}: {figure(value)}"),
            class_="low" if height < top else None,
            x=_short(at + 0.12),
            y=_short(1 - max(height, 0.0) / top),
            width=0.76,
            height=_short(max(height, 0.0) / top),
        )
        for at, (name, value, height) in enumerate(zip(names, values, finite, strict=True))
    ]
    ground = element("path", d=f"M0 1H{len(finite)}", class_="ground")
    return _stretched(f"0 0 {max(len(finite), 1)} 1", label, ground, *drawn, class_="spark")


def depth(series: Sequence[Series], names: Sequence[str], label: str) -> Plot:
    """Return values of all sites in the order of the graph on a logarithmic axis.

    What is zero, not finite or not known leaves a gap.
    """
    known = [v for s in series for v in s.values if _loggable(v)]
    low, high = _decades(known)
    places = [(k + 0.5) / max(len(names), 1) for k in range(len(names))]
    rows = tuple((name, _short(100 * (high - e) / (high - low))) for name, e in _ticks(low, high))
    grid = [element("path", d=f"M0 {place}H100", class_="grid") for _, place in rows]
    drawn: list[Markup] = []
    for one in series:
        points = [
            (_short(100 * x), _short(100 * (high - math.log10(v)) / (high - low)), n, v)
            if v is not None and _loggable(v)
            else None
            for x, n, v in zip(places, names, one.values, strict=True)
        ]
        drawn.append(element("path", d=_line([p and p[:2] for p in points]), class_=f"line-{one.style}"))
        drawn += [
            element(
                "path",
                element("title", f"{name}: {figure(value)}"),
                d=f"M{x} {y}h0",
                class_=f"dot-{one.style}",
            )
            for x, y, name, value in filter(None, points)
        ]
    step = max(1, round(len(names) / TICKS))
    columns = tuple((names[k], _short(100 * places[k])) for k in range(0, len(names), step))
    picture = _stretched("0 0 100 100", label, *grid, *drawn, class_="area")
    return Plot(picture, rows, columns)


def strip(seconds: Sequence[float], longest: float, style: str, label: str) -> Markup:
    """Return the times of all rounds on a line from zero: a bar up to the median, a dot per round."""
    middle = sorted(seconds)[len(seconds) // 2] if seconds else 0.0
    scale = 100 / longest if longest > 0 else 0.0
    bar = element("rect", x=0, y=6, width=_short(middle * scale), height=16, class_=f"bar {style}")
    mark = element("path", d=f"M{_short(middle * scale)} 3v22", class_=f"median {style}")
    dots = [
        element(
            "path",
            element("title", milliseconds(s)),
            d=f"M{_short(s * scale)} {9 + 5 * (at % 3)}h0",
            class_=f"round {style}",
        )
        for at, s in enumerate(seconds)
    ]
    return _stretched("0 0 100 28", label, bar, *dots, mark, class_="strip")


def _stretched(box: str, label: str, *children: Markup, class_: str) -> Markup:
    return element(
        "svg",
        *children,
        class_=class_,
        viewBox=box,
        preserveAspectRatio="none",
        role="img",
        aria_label=label,
    )


def _line(points: Sequence[tuple[float, float] | None]) -> str:
    """Return a path through the points that starts anew after a gap."""
    parts, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
            continue
        parts.append(f"{pen}{point[0]} {point[1]}")
        pen = "L"
    return "".join(parts)


def _loggable(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0


def _decades(values: Sequence[float | None]) -> tuple[int, int]:
    logs = [math.log10(v) for v in values if v is not None]
    low, high = math.floor(min(logs, default=0.0)), math.ceil(max(logs, default=1.0))
    return (low, high) if low < high else (low - 1, high)


def _ticks(low: int, high: int) -> list[tuple[str, float]]:
    """Return labels with their logarithms: powers of ten, and what is between where there is one decade."""
    if high - low == 1:
        return [(figure(m * 10.0**low), low + math.log10(m)) for m in (1, 2, 5, 10)]
    return [(_power(e), float(e)) for e in range(low, high + 1, max(1, math.ceil((high - low) / TICKS)))]


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _power(exponent: int) -> str:
    return "1" if exponent == 0 else f"10{str(exponent).translate(_RAISED)}"


def _short(number: float) -> float:
    return round(number, 2)
