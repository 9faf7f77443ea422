from __future__ import annotations

from fractions import Fraction

from rewriter.rules import any_of, axis, constant, mean, number, rsqrt, sigmoid, softmax, sqrt, sum_, tensor
from rewriter.rules.pattern import Product, Sum

A, B, D = tensor("a"), tensor("b"), axis("d")


def test_products_collect_numbers_and_powers() -> None:
    assert Product((A**1).parts, 2.0) == 0.5 * A * 4  # type: ignore[attr-defined]
    assert A * A == A**2
    assert str(A * B / A) == "b"
    assert sqrt(A**2) == A**1
    assert str(1 / sqrt(A)) == "a^-1/2" == str(rsqrt(A))
    assert (A**2) ** Fraction(1, 2) == A**1


def test_sums_collect_numbers() -> None:
    assert Sum((A,)) == A + 1 - 1
    assert str(1 - A) == "-1 · a + 1"
    assert str(A + number("eps") + 1) == "a + 1 + eps"


def test_patterns_read_like_formulas() -> None:
    assert str(mean(A**2, D)) == "mean[d](a^2)"
    assert str(sum_(A * B, D)) == "sum[d](a · b)"
    assert str(softmax(A, D)) == "(softmax[d](a) | exp(a) · sum[d](exp(a))^-1)"
    assert str(sigmoid(A)) == "(sigmoid(a) | 1 · (exp(-1 · a) + 1)^-1)".replace("1 · (", "(", 1)
    assert str(any_of("", x=A, y=B)) == "(a | b)"
    assert str(constant("w", over=(D,)) * A) == "w · a"
