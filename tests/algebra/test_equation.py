"""Equations of products: read, spelled out, and taken two at a time."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from rewriter.algebra.equation import Equation, Path

SIZES = {"a": 2, "b": 3, "c": 4, "d": 5, "e": 2}


def parsed(text: str) -> Equation:
    equation = Equation.parse(text)
    assert equation is not None
    return equation


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        (" b i d , b j d -> b i j ", "bid,bjd->bij"),
        ("ij,jk", "ij,jk->ik"),
        ("bA,ac", "bA,ac->Aabc"),
        ("...ij,...jk", "...ij,...jk->...ik"),
        ("i,i", "i,i->"),
        ("ij->", "ij->"),
        ("ij->ji", "ij->ji"),
    ],
)
def test_read_and_spelled(text: str, spelled: str) -> None:
    assert parsed(text).text == spelled


@pytest.mark.parametrize("text", ["ii->i", "ij,jj", "ij->ii", "i.j->ij", "....i->i", "i1->i", "......i->i"])
def test_what_is_no_equation_of_axes_that_are_apart(text: str) -> None:
    assert Equation.parse(text) is None


def test_an_ellipsis_is_as_many_axes_as_there_are() -> None:
    assert parsed("...ij,jk->...ik").explicit((4, 2)) == "abij,jk->abik"
    assert parsed("...i,...i->...").explicit((3, 1)) == "abi,i->ab"
    assert parsed("...i->i").explicit((3,)) == "abi->i"


@pytest.mark.parametrize("ranks", [(1, 2), (2, 3), (2,), (2, 2, 2)])
def test_ranks_that_do_not_fit(ranks: tuple[int, ...]) -> None:
    assert parsed("...ij,jk->...ik").explicit(ranks) is None


def test_more_axes_than_letters() -> None:
    assert parsed("...i,i->...").explicit((60, 1)) is None


def paths(count: int) -> list[Path]:
    if count == 1:
        return [()]
    return [((a, b), *rest) for a, b in combinations(range(count), 2) for rest in paths(count - 1)]


@pytest.mark.parametrize(
    "text",
    [
        "abc,bcd,de->ae",
        "abcd,bce,a->ad",
        "ab,bc,cd,de->",
        "a,b,c->cba",
        "abc,abc,abc->b",
        "ab,ab->ba",
        "...ab,...bc,cd->...ad",
        "...ab,b,...a->...",
    ],
)
def test_every_order_gives_the_same(text: str) -> None:
    """In float64 sums of so few terms differ in the last bits only."""
    equation, rng = parsed(text), np.random.default_rng(0)
    shapes = [
        [n for label in part for n in ((2, 3) if label == "..." else (SIZES[label],))]
        for part in equation.operands
    ]
    given = [rng.standard_normal(shape) for shape in shapes]
    expected = np.einsum(text, *given)
    for path in paths(len(given)):
        factors = list(given)
        for (a, b), step in zip(path, equation.along(path), strict=True):
            product = np.einsum(step.text, factors[a], factors[b])
            factors = [x for at, x in enumerate(factors) if at not in (a, b)] + [product]
        np.testing.assert_allclose(factors[0], expected, rtol=1e-12, atol=1e-13)


def test_what_nobody_needs_is_summed_at_once() -> None:
    steps = parsed("bhij,bhjd,hde->bie").along(((0, 1), (1, 0)))
    assert [step.text for step in steps] == ["bhij,bhjd->bhid", "bhid,hde->bie"]
