from __future__ import annotations

import numpy as np
import pytest

from rewriter.algebra.prims import Map, Prim, constant, leaf, pointwise

X = leaf("input", (4, 6), "float32", "x")


def number(value: float, shape: tuple[int, ...] = (), dtype: str = "float32") -> Prim:
    return constant(np.full(shape, value), dtype)


@pytest.mark.parametrize(
    "same",
    [
        pointwise("add", X, number(0)),
        pointwise("add", number(0), X),
        pointwise("sub", X, number(0)),
        pointwise("mul", X, number(1, (1,))),
        pointwise("mul", number(1), X),
        pointwise("div", X, number(1)),
        pointwise("neg", pointwise("neg", X)),
        pointwise("neg", pointwise("neg", X).named("y")),
    ],
)
def test_what_changes_nothing_is_an_identity(same: Prim) -> None:
    assert same.form == Map("identity")
    assert same.inputs == (X,)
    assert (same.shape, same.dtype) == (X.shape, X.dtype)


@pytest.mark.parametrize(
    "other",
    [
        pointwise("sub", number(0), X),
        pointwise("div", number(1), X),
        pointwise("mul", X, number(0)),
        pointwise("add", X, number(1)),
        pointwise("mul", X, number(1, (2, 1, 1))),
        pointwise("mul", X, number(1, (6,))),
        pointwise("mul", X, number(1), dtype="float64"),
        pointwise("neg", X),
    ],
)
def test_what_changes_something_is_none(other: Prim) -> None:
    assert other.form != Map("identity")
