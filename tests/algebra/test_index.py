"""Indices are pulled back exactly: checked against numpy by reading every element both ways."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rewriter.algebra import prims as P
from rewriter.algebra.index import Affine, Atom, fresh, pull, resolve
from rewriter.algebra.prims import Prim
from rewriter.algebra.sizes import Size
from rewriter.algebra.term import read

X = P.leaf("input", (4, 6, 5), "float32", "x")
ARRAY = np.arange(120).reshape(4, 6, 5)

VIEWS: dict[str, tuple[Prim, np.ndarray]] = {
    "permute": (P.permute(X, (2, 0, 1)), ARRAY.transpose(2, 0, 1)),
    "split an axis": (P.reshape(X, (4, 2, 3, 5)), ARRAY.reshape(4, 2, 3, 5)),
    "merge axes": (P.reshape(X, (24, 5)), ARRAY.reshape(24, 5)),
    "merge all": (P.reshape(X, (120,)), ARRAY.reshape(120)),
    "cut across": (P.reshape(X, (8, 3, 5)), ARRAY.reshape(8, 3, 5)),
    "permute then merge": (
        P.reshape(P.permute(X, (1, 0, 2)), (6, 20)),
        ARRAY.transpose(1, 0, 2).reshape(6, 20),
    ),
    "slice": (P.slice_(X, 1, 1, 3), ARRAY[:, 1:4]),
    "strided slice": (P.slice_(X, 1, 1, 2, 3), ARRAY[:, 1:6:3]),
    "reversed": (P.slice_(X, 2, 4, 5, -1), ARRAY[:, :, ::-1]),
    "select": (P.select(X, 1, 2), ARRAY[:, 2]),
    "select from a split": (P.select(P.reshape(X, (4, 3, 2, 5)), 1, 1), ARRAY.reshape(4, 3, 2, 5)[:, 1]),
    "expand and merge": (
        P.reshape(P.expand(P.unsqueeze(X, 1), (4, 3, 6, 5)), (12, 6, 5)),
        np.broadcast_to(ARRAY[:, None], (4, 3, 6, 5)).reshape(12, 6, 5),
    ),
    "one side of a concat": (
        P.slice_(P.concat([P.leaf("input", (4, 2, 5), "float32", "y"), X], 1), 1, 2, 6),
        ARRAY,
    ),
    "cut and put together": (
        P.concat([P.slice_(X, 1, 0, 2), P.slice_(X, 1, 2, 1), P.slice_(X, 1, 3, 3)], 1),
        ARRAY,
    ),
    "a part, cut and put together": (
        P.concat([P.slice_(P.slice_(X, 1, 1, 4), 1, k, 2) for k in (0, 2)], 1),
        ARRAY[:, 1:5],
    ),
    "gather by iota": (P.gather(X, P.iota(3, start=1, step=2), 1), ARRAY[:, 1:6:2]),
}


@pytest.mark.parametrize("name", VIEWS)
def test_pull_back_reads_the_same_element(name: str) -> None:
    view, expected = VIEWS[name]
    index = fresh(view.shape)
    found = read(view, index)
    assert found.prim is X, name
    atoms = [p for dim in index for a, _ in dim.terms for p in a.parts()]
    places = resolve(index)
    for values in itertools.product(*(range(int(a.size)) for a in atoms)):
        at = dict(zip(atoms, values, strict=True))
        here = tuple(_number(dim, at) for dim in places)
        there = tuple(_number(dim, at) for dim in resolve(found.index))
        assert ARRAY[there] == expected[here]


def _number(dim: Affine, at: dict[Atom, int]) -> int:
    return int(dim.start) + sum(int(s) * at[a] for a, s in dim.terms)


def test_reshape_that_does_not_line_up_is_not_followed() -> None:
    view = P.reshape(P.permute(X, (1, 0, 2)), (8, 15))
    step = pull(view, fresh(view.shape))
    assert step is None


def test_range_across_a_concat_is_not_followed() -> None:
    both = P.concat([X, X], 1)
    assert pull(both, fresh(both.shape)) is None


@pytest.mark.parametrize("parts", [[(2, 4), (0, 2)], [(0, 2), (3, 3)], [(0, 3), (2, 3)]])
def test_parts_that_stand_elsewhere_are_not_put_together(parts: list[tuple[int, int]]) -> None:
    moved = P.concat([P.slice_(X, 1, start, size) for start, size in parts], 1)
    assert pull(moved, fresh(moved.shape)) is None


def test_parts_of_another_axis_are_not_put_together() -> None:
    square = P.leaf("input", (4, 4), "float32", "y")
    moved = P.concat([P.slice_(square, 0, 0, 2), P.slice_(square, 0, 2, 2)], 1)
    assert pull(moved, fresh(moved.shape)) is None


def test_dynamic_sizes_line_up_exactly() -> None:
    x = P.leaf("input", ("b", "s", 24), "float32", "x")
    heads = P.permute(P.reshape(x, ("b", "s", 6, 4)), (0, 2, 1, 3))
    merged = P.reshape(heads, (Size.parse("6*b"), "s", 4))
    found = read(merged, fresh(merged.shape))
    assert found.prim is x
    assert [len(dim.terms) for dim in found.index] == [1, 1, 2]
