from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from rewriter.algebra.evaluate import evaluate
from rewriter.algebra.prims import (
    Map,
    Prim,
    broadcast,
    concat,
    constant,
    einsum,
    gather,
    leaf,
    matmul,
    permute,
    pointwise,
    reshape,
    running_sum,
    runs_along,
    slice_,
    softmax,
    squeeze,
    sum_,
    unsqueeze,
)
from rewriter.algebra.sizes import Size

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


def of(*shape: int | str) -> Prim:
    return leaf("input", [Size.parse(str(n)) for n in shape], "float32", "t")


@pytest.mark.parametrize(
    "make",
    [
        lambda: pointwise("add", of(2, 3), of(4)),
        lambda: pointwise("where", of(2), of("n"), of(3)),
        lambda: matmul(of(2, 3), of(4, 5)),
        lambda: matmul(of(2, 3, 3), of(4, 3, 3)),
        lambda: einsum("ij,jk->ik", of(2, 3), of(4, 5)),
        lambda: reshape(of(2, 3), [5]),
        lambda: permute(of(2, 3), (0, 0)),
        lambda: permute(of(2, 3), (0,)),
        lambda: permute(of(2, 3), (0, 5)),
        lambda: softmax(of(2, 3), 2),
        lambda: softmax(of(), 0),
        lambda: squeeze(of(1, 3), -3),
        lambda: unsqueeze(of(1, 3), 4),
        lambda: slice_(of(2, 3), 7, 0, 1),
        lambda: sum_(of(2, 3), [2]),
        lambda: concat([of(2, 3), of(2)], 0),
        lambda: gather(of(2, 3), of(4), 2),
    ],
)
def test_operands_that_do_not_fit_are_refused(make: Callable[[], Prim]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        make()


def test_sizes_that_may_fit_are_not() -> None:
    assert broadcast(of("n", 3).shape, of(4, 1).shape) == of(4, 3).shape
    assert matmul(of(2, "n"), of(3, 5)).shape == of(2, 5).shape
    assert reshape(of("n", 3), [7]).shape == of(7).shape


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_a_running_sum_is_known_by_its_axis(axis: int) -> None:
    x = leaf("input", (2, 1, 5), "float64", "x")
    total = running_sum(x, axis)
    given = np.random.default_rng(0).standard_normal((2, 1, 5))
    (found,) = evaluate([total], {"x": given})
    np.testing.assert_allclose(found, given.cumsum(axis), rtol=1e-14)
    assert runs_along(total) == axis % 3


def test_other_sums_run_along_nothing() -> None:
    triangle = running_sum(X, 0).inputs[0]
    turned = permute(triangle, (1, 0))
    assert runs_along(X) is None and runs_along(sum_(X, (0,))) is None
    assert runs_along(einsum("ij,jd->id", turned, X)) is None
    assert runs_along(einsum("ij,id->jd", triangle, X)) is None
    assert runs_along(einsum("ij,jd->di", triangle, X)) is None
    assert runs_along(einsum("ij,jd->d", triangle, X)) is None
    assert runs_along(einsum("ij,jd->id", triangle, X)) == 0


def test_what_sums_nothing_is_a_product_of_entries() -> None:
    y = leaf("input", (6,), "float32", "y")
    assert einsum("ij,j->ij", X, y).form == Map("mul")
    assert einsum("ij->ji", X).form == permute(X, (1, 0)).form
    given = {"x": np.arange(24.0).reshape(4, 6), "y": np.arange(6.0)}
    (found,) = evaluate([einsum("ij,j->ji", X, y)], given)
    np.testing.assert_array_equal(found, (given["x"] * given["y"]).T)
