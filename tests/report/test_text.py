from __future__ import annotations

import pytest

from rewriter.report.text import figure, heads, milliseconds, share, times


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (float("nan"), "NaN"),
        (float("inf"), "∞"),
        (float("-inf"), "-∞"),
        (1.23456, "1.23"),
        (0.00123, "0.00123"),
        (123.4, "123"),
        (54321.0, "54321"),
        (1.234e-7, "1.23e-7"),
        (-9.87e12, "-9.87e12"),
    ],
)
def test_figure(number: float | None, text: str) -> None:
    assert figure(number) == text


def test_a_share_below_one_is_never_shown_as_one() -> None:
    assert share(1.0) == "1.0000"
    assert share(1 - 1e-9) == "<1"
    assert share(0.98765) == "0.9877"


def test_units() -> None:
    assert heads(9, 3) == "9:3"
    assert heads("h", "h") == "h"
    assert milliseconds(0.01234) == "12.3 ms"
    assert milliseconds(1.2345) == "1.23 s"
    assert times(1.416) == "1.42×"
