"""Random chains of views: whatever grid is claimed is there when the places of the image are followed."""

from __future__ import annotations

import random
from collections.abc import Callable
from math import prod

import numpy as np
import pytest

from rewriter.algebra import prims as P
from rewriter.algebra.evaluate import evaluate
from rewriter.algebra.index import fresh
from rewriter.algebra.prims import Constant, Prim
from rewriter.algebra.sizes import Size
from rewriter.sites.formula import Operand
from rewriter.sites.geometry import geometry_along
from rewriter.sites.origin import Origin
from tests.sites.prim_program import PrimProgram

SHAPE = (2, 4, 6, 3)
"""Batch, rows, columns, channels."""

OUTSIDE = -1.0
"""What tokens and places hold that are not of the image."""

LARGEST = 4000


def sizes(x: Prim) -> list[int]:
    return [int(n) for n in x.shape]


def learned(shape: list[int]) -> Prim:
    return Prim(Constant(lambda: np.full(shape, OUTSIDE)), (), tuple(map(Size.of, shape)), "float32")


def transposed(r: random.Random, x: Prim) -> Prim:
    return P.permute(x, r.sample(range(len(x.shape)), len(x.shape)))


def merged(r: random.Random, x: Prim) -> Prim:
    shape = sizes(x)
    at = r.randrange(max(len(shape) - 1, 1))
    return P.reshape(x, [*shape[:at], prod(shape[at : at + 2]), *shape[at + 2 :]])


def divided(r: random.Random, x: Prim) -> Prim:
    shape = sizes(x)
    at = r.randrange(len(shape))
    low = r.choice([d for d in range(1, shape[at] + 1) if shape[at] % d == 0])
    return P.reshape(x, [*shape[:at], shape[at] // low, low, *shape[at + 1 :]])


def regrouped(r: random.Random, x: Prim) -> Prim:
    left = prod(sizes(x))
    shape: list[int] = []
    while left > 1 and len(shape) < 4:
        shape.append(r.choice([d for d in range(1, left + 1) if left % d == 0]))
        left //= shape[-1]
    return P.reshape(x, [*shape, left])


def sliced(r: random.Random, x: Prim) -> Prim:
    at = r.randrange(len(x.shape))
    length = sizes(x)[at]
    step = r.choice([1, 1, 1, 2, -1])
    start = r.randrange(length)
    most = (length - start + step - 1) // step if step > 0 else start + 1
    return P.slice_(x, at, start, r.randint(1, most), step)


def turned(r: random.Random, x: Prim) -> Prim:
    at = r.randrange(len(x.shape))
    length = sizes(x)[at]
    start = r.randrange(length)
    parts = [P.slice_(x, at, start, length - start), P.slice_(x, at, 0, start)]
    return P.concat(parts, at) if start else x


def extended(r: random.Random, x: Prim) -> Prim:
    at, shape = r.randrange(len(x.shape)), sizes(x)
    shape[at] = r.randint(1, 3)
    fill = P.expand(P.constant(OUTSIDE, "float32"), shape)
    return P.concat(r.choice([[learned(shape), x], [x, learned(shape)], [fill, x], [x, fill]]), at)


def torn(r: random.Random, x: Prim) -> Prim:
    at = r.randrange(len(x.shape))
    if sizes(x)[at] < 4:
        return x
    return P.concat([sliced_at(x, at, 0), sliced_at(x, at, 1)], at)


def sliced_at(x: Prim, at: int, first: int) -> Prim:
    return P.slice_(x, at, first, (sizes(x)[at] - first + 1) // 2, 2)


def put_first(r: random.Random, x: Prim) -> Prim:
    """The first entry off, something learned after it: how registers are put in."""
    at, shape = r.randrange(len(x.shape)), sizes(x)
    length, shape[at] = shape[at], 2
    if length < 2:
        return x
    return P.concat([P.slice_(x, at, 0, 1), learned(shape), P.slice_(x, at, 1, length - 1)], at)


def permuted(r: random.Random, x: Prim) -> Prim:
    at = r.randrange(len(x.shape))
    order = r.sample(range(sizes(x)[at]), sizes(x)[at])
    return P.gather(x, P.constant(np.array(order, dtype=np.int64)), at)


STEPS: list[Callable[[random.Random, Prim], Prim]] = [
    transposed, transposed, merged, divided, divided, divided, sliced, turned, extended, torn, permuted,
    regrouped,
]  # fmt: skip


def chain(seed: int) -> Prim:
    r = random.Random(seed)
    x = P.leaf("input", SHAPE, "float32", "x")
    made = P.einsum("bhwc,cd->bhwd", x, Prim(Constant(lambda: np.eye(3)), (), (Size.of(3),) * 2, "float32"))
    for _ in range(r.randint(0, 5)):
        following = r.choice(STEPS)(r, made)
        if prod(sizes(following)) <= LARGEST and len(following.shape) <= 8:
            made = following
    return flattened(r, made)


def flattened(r: random.Random, x: Prim) -> Prim:
    """Some axes as one, and perhaps something learned before them."""
    rank = len(x.shape)
    chosen = r.sample(range(rank), min(rank, r.choice([1, 2, 2, 2, 3])))
    others = [k for k in range(rank) if k not in chosen]
    moved = P.permute(x, [*others, *chosen])
    tokens = P.reshape(moved, [*(sizes(x)[k] for k in others), prod(sizes(x)[k] for k in chosen)])
    return r.choice([transposed, put_first, extended, sliced])(r, tokens)


def claims(seed: int) -> int:
    """Check every claim about one chain; return how many there are."""
    program = PrimProgram(chain(seed))
    prims = program.prims()
    last = prims[program.graph.outputs[-1]]
    origin = Origin(program.graph, prims)
    index = fresh(last.shape)
    found = 0
    for k, dim in enumerate(index):
        shown = geometry_along(origin, Operand(last.value or "", index), [a for a, _ in dim.terms])
        if shown is None or shown.grid is None:
            continue
        assert shown.prefix is not None
        grid = list(map(int, shown.grid))
        counted: list[set[int]] = [set() for _ in grid]
        for axis, where in enumerate(places(last)):
            tokens = np.moveaxis(where, k, 0)[shown.prefix :].reshape(*grid, -1)
            for at, axes in enumerate(counted):
                if _counts(tokens, at):
                    axes.add(axis)
        assert all(counted) and len(set().union(*counted)) >= len(grid), (seed, k, shown)
        found += 1
    return found


def places(made: Prim) -> list[np.ndarray]:
    """Return, for each axis of the image, which place along it every entry holds."""
    found = []
    for axis, length in enumerate(SHAPE):
        count = np.arange(length).reshape(-1, *(1,) * (len(SHAPE) - axis - 1))
        found += evaluate([made], {"x": np.broadcast_to(count, SHAPE).astype(np.float64)})
    return found


def _counts(where: np.ndarray, axis: int) -> bool:
    """Whether one axis (the last one aside) alone says which places are held, in their order or turned."""
    along = np.moveaxis(where, axis, 0)
    for rows in np.moveaxis(along.reshape(len(along), -1, where.shape[-1]), -1, 0):
        held = [set(row[row != OUTSIDE]) for row in rows]
        if any(len(row) > 1 for row in held):
            return False
        known = [row.pop() for row in held if row]
        if len(set(known)) < len(known) or not _in_order(known):
            return False
    return True


def _in_order(numbers: list[float]) -> bool:
    """Whether numbers go up all the way round, or down all the way, but for one place."""
    steps = [b > a for a, b in zip(numbers, [*numbers[1:], *numbers[:1]], strict=True)]
    return min(sum(steps), len(steps) - sum(steps)) <= 1


@pytest.mark.parametrize("block", range(4))
def test_what_is_claimed_is_there(block: int) -> None:
    found = sum(claims(seed) for seed in range(block * 500, (block + 1) * 500))
    assert found > 10, "the chains show too little to test anything"
