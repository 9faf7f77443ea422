from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from rewriter.report.charts import Series, bars, depth, strip


def numbers(text: str) -> list[float]:
    return [float(x) for x in re.findall(r"-?\d+\.?\d*", text)]


def places(picture: str, style: str) -> list[tuple[float, float]]:
    paths = ElementTree.fromstring(picture).iter("path")
    return [
        (x, y) for p in paths if p.get("class") == f"dot-{style}" for x, y, _ in [numbers(p.get("d") or "")]
    ]


def test_larger_errors_are_higher_and_sites_go_right() -> None:
    plot = depth([Series("after", [1e-3, 1e-2, 1e-1])], ["a", "b", "c"], "label")
    (x0, y0), (x1, y1), (x2, y2) = places(plot.picture, "after")
    assert x0 < x1 < x2 and y0 == 100 and y2 == 0 and y1 == pytest.approx(50)
    assert plot.rows == (("10⁻³", 100.0), ("10⁻²", 50.0), ("10⁻¹", 0.0))
    assert [name for name, _ in plot.columns] == ["a", "b", "c"]


@pytest.mark.parametrize("gap", [None, 0.0, math.nan, math.inf, -1.0])
def test_what_has_no_logarithm_is_a_gap(gap: float | None) -> None:
    plot = depth([Series("after", [0.1, gap, 0.2])], ["a", "b", "c"], "label")
    assert len(places(plot.picture, "after")) == 2
    line = next(
        p for p in ElementTree.fromstring(plot.picture).iter("path") if p.get("class") == "line-after"
    )
    assert (line.get("d") or "").count("M") == 2


def test_one_decade_has_labels_between() -> None:
    plot = depth([Series("before", [0.15, 0.7])], ["a", "b"], "label")
    assert [name for name, _ in plot.rows] == ["0.1", "0.2", "0.5", "1"]


def test_nothing_known_is_an_empty_plot() -> None:
    assert places(depth([Series("after", [None, 0.0])], ["a", "b"], "x").picture, "after") == []


def test_many_sites_have_few_labels() -> None:
    plot = depth([Series("after", [0.1] * 96)], [str(k) for k in range(96)], "x")
    assert len(plot.columns) < 8


def test_bars_are_relative_to_the_largest() -> None:
    found = ElementTree.fromstring(bars([1.0, 4.0, math.nan, -1.0], ["a", "b", "c", "d"], "x"))
    heights = [float(r.get("height") or "nan") for r in found.iter("rect")]
    assert heights == [0.25, 1.0, 0.0, 0.0]
    assert [t.text for t in found.iter("title")][:2] == ["a: 1", "b: 4"]


def test_times_share_a_scale_from_zero() -> None:
    found = ElementTree.fromstring(strip([1.0, 2.0, 3.0], 4.0, "first", "x"))
    (bar,) = found.iter("rect")
    assert bar.get("width") == "50.0"
    rounds = [numbers(p.get("d") or "")[0] for p in found.iter("path") if "round" in (p.get("class") or "")]
    assert rounds == [25.0, 50.0, 75.0]
    ElementTree.fromstring(strip([], 0.0, "first", "x"))
