from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from rewriter.algebra import prims
from rewriter.algebra.evaluate import evaluate
from rewriter.algebra.prims import Constant, Leaf, Prim
from rewriter.algebra.sizes import ONE, Size
from rewriter.demand.places import Demand, Places, hull
from rewriter.demand.pulled import pulled
from rewriter.sites.carried import Mark, carried
from tests.sites.test_carried import KEEP, MIX, B, Build, C, N

SIZE = Size.of(N)


def source() -> Prim:
    return prims.leaf("input", (B, N, C), "float32", "x")


def back(prim: Prim, mark: Mark | None, x: Prim) -> Iterator[Mark | str | None]:
    """Yield where the axis is in every use of ``x``, or ``mixed``."""
    if prim is x:
        yield mark
    elif not isinstance(prim.form, Leaf | Constant):
        below = [None] * len(prim.inputs) if mark is None else pulled(prim, mark, SIZE)
        if below is None:
            yield "mixed"
        else:
            for operand, at in zip(prim.inputs, below, strict=True):
                yield from back(operand, at, x)


def marks(prim: Prim) -> Iterator[Mark]:
    """Yield every way to find as many places in an axis."""
    for axis, size in enumerate(map(int, prim.shape)):
        for outer in range(1, size + 1):
            if size % (outer * N) == 0:
                yield Mark(axis, Size.of(outer), Size.of(size // (outer * N)))


def place(values: np.ndarray, mark: Mark, at: int) -> np.ndarray:
    before, behind = values.shape[: mark.axis], values.shape[mark.axis + 1 :]
    apart = values.reshape(*before, int(mark.outer), N, int(mark.inner), *behind)
    found: np.ndarray = np.take(apart, at, mark.axis + 1)
    return found


@pytest.mark.parametrize(("name", "build"), KEEP + MIX, ids=[n for n, _ in KEEP + MIX])
def test_place_needs_only_the_places_that_are_told(name: str, build: Build) -> None:
    """Other places of the operand may hold anything."""
    x = source()
    result = build(x)
    rng = np.random.default_rng(0)
    values = rng.standard_normal((B, N, C))
    (known,) = evaluate([result], {"x": values})
    for mark in marks(result):
        uses = set(back(result, mark, x))
        if len(uses) != 1 or not isinstance(at := uses.pop(), Mark):
            continue
        for p in range(N):
            other = rng.standard_normal((B, N, C))
            kept = np.moveaxis(place(other, at, p)[None], 0, at.axis + 1)
            assert kept.size == values.size / N
            apart = [*values.shape[: at.axis], int(at.outer), N, int(at.inner), *values.shape[at.axis + 1 :]]
            mixed = other.reshape(apart).copy()
            here = [slice(None)] * len(apart)
            here[at.axis + 1] = slice(p, p + 1)
            mixed[tuple(here)] = values.reshape(apart)[tuple(here)]
            (found,) = evaluate([result], {"x": mixed.reshape(values.shape)})
            np.testing.assert_allclose(place(found, mark, p), place(known, mark, p), atol=1e-12)


@pytest.mark.parametrize(("name", "build"), KEEP, ids=[n for n, _ in KEEP])
def test_what_is_carried_is_pulled_back(name: str, build: Build) -> None:
    x = source()
    known: dict[Prim, Mark | None] = {x: Mark(1)}

    def forward(prim: Prim) -> Mark | None:
        if prim not in known:
            leaf = isinstance(prim.form, Leaf | Constant)
            known[prim] = None if leaf else carried(prim, [forward(p) for p in prim.inputs], SIZE)
        return known[prim]

    result = build(x)
    mark = forward(result)
    assert mark is not None
    assert set(back(result, mark, x)) == {Mark(1)}


@pytest.mark.parametrize(
    "name", ["mean of tokens", "softmax of tokens", "largest token", "mixed by a matrix", "tokens joined"]
)
def test_places_that_are_mixed_are_not_pulled_back(name: str) -> None:
    x = source()
    result = dict(MIX)[name](x)
    found = [set(back(result, mark, x)) for mark in marks(result) if mark.axis == 1]
    assert all(Mark(1) not in uses for uses in found)


def test_hull_of_places() -> None:
    def at(start: int, count: int = 1) -> Demand:
        return Demand(Mark(1), Places(SIZE, Size.of(start), Size.of(count)))

    assert hull([at(0), at(0)]) == at(0)
    assert hull([at(1), at(3)]) == at(1, 3)
    assert hull([at(0), at(4)]) is None, "that is everything"
    assert hull([at(0), Demand(Mark(0), at(0).places)]) is None
    last = Places(Size.symbol("s"), Size.symbol("s") - 1, ONE)
    assert hull([Demand(Mark(1), last), Demand(Mark(1), last)]) == Demand(Mark(1), last)
    assert hull([Demand(Mark(1), last), at(0)]) is None
