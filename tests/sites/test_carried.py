from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from rewriter.algebra import prims
from rewriter.algebra.evaluate import evaluate
from rewriter.algebra.prims import Leaf, Prim
from rewriter.algebra.sizes import Size
from rewriter.sites.carried import Mark, carried

B, N, C = 2, 5, 6
RNG = np.random.default_rng(0)
W = prims.constant(RNG.standard_normal((C, 4)))
PLACES = prims.constant(RNG.standard_normal((N, C)))

Build = Callable[[Prim], Prim]

KEEP: list[tuple[str, Build]] = [
    ("map", lambda x: prims.pointwise("add", x, prims.constant(RNG.standard_normal(C)))),
    ("map of both", lambda x: prims.pointwise("mul", x, prims.pointwise("exp", x))),
    ("map of a mean of features", lambda x: prims.pointwise("sub", x, prims.sum_(x, [2], keepdim=True))),
    ("projection", lambda x: prims.matmul(x, W)),
    ("heads", lambda x: prims.permute(prims.reshape(x, (B, N, 2, 3)), (0, 2, 1, 3))),
    ("flattened", lambda x: prims.matmul(prims.reshape(x, (B * N, C)), W)),
    ("flattened and back", lambda x: prims.reshape(prims.matmul(prims.reshape(x, (B * N, C)), W), (B, N, 4))),
    ("channels first", lambda x: prims.permute(x, (2, 1, 0))),
    ("flattened behind", lambda x: prims.reshape(prims.permute(x, (0, 2, 1)), (B, C * N))),
    ("softmax of features", lambda x: prims.softmax(x, 2)),
    ("largest feature", lambda x: prims.reduce("max", x, [2])),
    ("slice of features", lambda x: prims.slice_(x, 2, 1, 3)),
    ("slice of the batch", lambda x: prims.slice_(x, 0, 1, 1)),
    ("slice of everything", lambda x: prims.slice_(x, 1, 0, N)),
    ("repeated", lambda x: prims.expand(prims.unsqueeze(x, 0), (3, B, N, C))),
    ("features joined", lambda x: prims.concat([x, prims.pointwise("neg", x)], 2)),
    ("features picked", lambda x: prims.gather(x, prims.constant(np.array([[0, 2], [1, 1]])), 2)),
    ("batch picked", lambda x: prims.gather(x, prims.constant(np.array([1, 0, 1])), 0)),
    ("product token by token", lambda x: prims.einsum("bnc,bnd->bncd", x, x)),
]

MIX: list[tuple[str, Build]] = [
    ("positions", lambda x: prims.pointwise("add", x, PLACES)),
    ("positions joined", lambda x: prims.concat([x, prims.expand(PLACES, (B, N, C))], 2)),
    ("mean of tokens", lambda x: prims.sum_(x, [1])),
    ("softmax of tokens", lambda x: prims.softmax(x, 1)),
    ("largest token", lambda x: prims.reduce("max", x, [1], keepdim=True)),
    ("scores", lambda x: prims.einsum("bnc,bmc->bnm", x, x)),
    ("weights by place", lambda x: prims.einsum("bnc,nd->bncd", x, PLACES)),
    ("mixed by a matrix", lambda x: prims.einsum("bnc,nm->bmc", x, prims.constant(np.ones((N, N))))),
    ("first token", lambda x: prims.select(x, 1, 0)),
    ("every other token", lambda x: prims.slice_(x, 1, 0, 3, 2)),
    ("turned round", lambda x: prims.slice_(x, 1, N - 1, N, -1)),
    ("tokens joined", lambda x: prims.concat([x, x], 1)),
    ("tokens picked", lambda x: prims.gather(x, prims.constant(np.array([1, 0])), 1)),
    ("grid of tokens and features", lambda x: prims.reshape(x, (B, 3, N * 2))),
    (
        "known by place",
        lambda x: prims.pointwise("add", prims.reduce("max", x, [2]), prims.constant(np.ones(N))),
    ),
    (
        "tokens twice",
        lambda x: prims.pointwise("add", prims.reshape(x, (B, N, 1, C)), prims.reshape(x, (B, 1, N, C))),
    ),
]


def marked(prim: Prim, x: Prim) -> Mark | None:
    """Where the tokens of ``x`` are in what is computed from it."""
    known: dict[Prim, Mark | None] = {x: Mark(1)}

    def of(at: Prim) -> Mark | None:
        if at not in known:
            marks = [of(p) for p in at.inputs]
            known[at] = carried(at, marks, Size.of(N)) if any(marks) else None
        return known[at]

    return of(prim)


def places(array: np.ndarray, mark: Mark) -> np.ndarray:
    """Return an array with the tokens in front."""
    shape = array.shape
    outer, inner = int(mark.outer), int(mark.inner)
    split = array.reshape(*shape[: mark.axis], outer, N, inner, *shape[mark.axis + 1 :])
    return np.moveaxis(split, mark.axis + 1, 0)


@pytest.mark.parametrize(("name", "build"), KEEP, ids=[name for name, _ in KEEP])
def test_tokens_that_are_reordered_are_reordered_in_the_result(name: str, build: Build) -> None:
    x = prims.leaf("input", (B, N, C), "float64", "x")
    result = build(x)
    mark = marked(result, x)
    assert mark is not None, name
    given, order = RNG.standard_normal((B, N, C)), RNG.permutation(N)
    (before,), (after,) = (evaluate([result], {"x": a}) for a in (given, given[:, order]))
    np.testing.assert_allclose(places(after, mark), places(before, mark)[order])


@pytest.mark.parametrize(("name", "build"), MIX, ids=[name for name, _ in MIX])
def test_what_tells_tokens_apart_or_mixes_them_carries_none(name: str, build: Build) -> None:
    x = prims.leaf("input", (B, N, C), "float64", "x")
    assert marked(build(x), x) is None


def test_a_leaf_carries_nothing_by_itself() -> None:
    x = prims.leaf("input", (B, N, C), "float64", "x")
    unknown = Prim(Leaf("mystery"), (), x.shape, "float64", "y")
    assert carried(unknown, [], Size.of(N)) is None


def test_open_sizes_are_followed() -> None:
    b = Size.symbol("b")
    x = prims.leaf("input", (b, N, C), "float64", "x")
    flat = prims.reshape(x, (b * N, C))
    assert carried(flat, [Mark(1)], Size.of(N)) == Mark(0, b, Size.of(1))
    assert carried(prims.reshape(flat, (b, N, C)), [Mark(0, b, Size.of(1))], Size.of(N)) == Mark(1)
