"""Sizes are exact integer polynomials."""

from __future__ import annotations

import pytest

from rewriter.algebra.sizes import ONE, ZERO, Size, product

S, T = Size.symbol("s"), Size.symbol("t")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", "3"),
        ("s", "s"),
        ("2*s + 1", "2*s + 1"),
        ("s*(s + 1)", "s*s + s"),
        ("-s + t", "-s + t"),
        ("s**2", "s*s"),
        ("s // 2", "s // 2"),
        ("Max(1, s)", "Max(1, s)"),
        ("not python (", "not python ("),
    ],
)
def test_parse(text: str, expected: str) -> None:
    assert str(Size.parse(text)) == expected


def test_opaque_text_is_one_symbol() -> None:
    assert Size.parse("s // 2").symbols == {"s // 2"}


@pytest.mark.parametrize(
    ("dividend", "divisor", "quotient"),
    [
        (S * T, S, T),
        (S * S - 1, S + 1, S - 1),
        (6 * S, Size.of(4), None),
        (S + 1, S, None),
        (ZERO, S, ZERO),
        (S, ZERO, None),
        (S, ONE, S),
    ],
)
def test_divide_is_exact_or_none(dividend: Size, divisor: Size, quotient: Size | None) -> None:
    assert dividend.divide(divisor) == quotient


@pytest.mark.parametrize(
    ("size", "bound", "proved"),
    [
        (S, 1, True),
        (S, 2, False),
        (S + T, 2, True),
        (S - T, 0, False),
        (S * T, 1, True),
        (S * T - S, 0, True),
    ],
)
def test_at_least_holds_for_every_dimension_of_one_or_more(size: Size, bound: int, proved: bool) -> None:
    assert size.at_least(bound) is proved


def test_number_of_a_symbol_is_an_error() -> None:
    with pytest.raises(ValueError, match="size s is not a number"):
        int(S)


def test_substitute_and_product() -> None:
    assert product([S, T, Size.of(2)]).substitute({"s": 3, "t": S}) == 6 * S
