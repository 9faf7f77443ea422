"""Smallest programs of what random ones showed: each was read wrongly, or not at all."""

from __future__ import annotations

import numpy as np
import pytest

from rewriter.algebra import prims as P
from rewriter.algebra.prims import Prim
from rewriter.sites import AttentionSite, raise_sites
from tests.sites.prim_program import PrimProgram


def only(output: Prim) -> AttentionSite:
    sites, refused = raise_sites(PrimProgram(output))  # type: ignore[arg-type]
    assert len(sites) == 1, refused
    return sites[0]


def leaf(name: str, *shape: int, dtype: str = "float32") -> Prim:
    return P.leaf("input", shape, dtype, name)


def number(value: float, dtype: str = "float32") -> Prim:
    return P.constant(value, dtype)


def hidden(seen: Prim, scores: Prim, fill: float) -> Prim:
    return P.pointwise("where", seen, scores, number(fill, scores.dtype or ""), dtype=scores.dtype)


def added(seen: Prim, scores: Prim, fill: float) -> Prim:
    bias = P.pointwise("where", seen, number(0.0), number(fill), dtype="float32")
    return P.pointwise("add", scores, bias)


def window(rows: int, columns: int) -> Prim:
    """Return where a key is the query's own or the one before it."""
    i, j = P.unsqueeze(P.iota(rows), 1), P.unsqueeze(P.iota(columns), 0)
    after = P.pointwise("le", j, i)
    return P.pointwise("and", after, P.pointwise("le", P.pointwise("sub", i, j), P.constant(1)))


Q, K, V = leaf("q", 2, 4, 4), leaf("k", 2, 4, 4), leaf("v", 2, 4, 3)
SCORES = P.matmul(Q, P.swap(K, 1, 2))
KEEP = leaf("keep", 4, dtype="bool")


def test_keys_beside_features_say_nothing_of_heads() -> None:
    q = P.reshape(leaf("q", 2, 6, 72), (2, 6, 8, 3, 3))
    k = P.reshape(leaf("k", 2, 3, 40), (2, 3, 5, 8))
    v = P.reshape(leaf("v", 35, 2, 3), (5, 7, 2, 3))
    weights = P.softmax(P.einsum("bidhg,bhjd->bhgij", q, k), 4)
    site = only(P.einsum("bhgij,jebh->bhgie", weights, v))
    assert (int(site.heads), int(site.kv_heads), int(site.queries), int(site.keys)) == (9, 3, 6, 5)


def test_a_scale_on_both_sides_is_taken_off_behind_a_unit_axis() -> None:
    root = number(0.3**0.5)
    q, k, v = leaf("q", 4, 5), leaf("k", 1, 6, 5), leaf("v", 1, 6, 3)
    q = P.pointwise("mul", P.reshape(q, (1, 2, 2, 5)), root)
    k = P.unsqueeze(P.pointwise("mul", k, root), 1)
    weights = P.softmax(P.matmul(k, P.swap(q, 2, 3)), 2)
    site = only(P.matmul(P.swap(weights, 2, 3), P.unsqueeze(v, 1)))
    assert site.scale == pytest.approx(0.3)
    assert {"q", "k"} <= {x.value for x in site.formula.operands}


@pytest.mark.parametrize("exchanged", [False, True])
def test_queries_of_one_key_are_what_the_values_do_not_have(exchanged: bool) -> None:
    x, memory = leaf("x", 1, 5, 8), leaf("memory", 1, 1, 8)
    q = P.reshape(P.matmul(x, leaf("wq", 8, 6)), (1, 5, 6, 1))
    k, v = (P.reshape(P.matmul(memory, leaf(w, 8, n)), (1, 1, 6, n // 6)) for w, n in (("wk", 6), ("wv", 18)))
    scores = P.einsum("bjhd,bihd->bhij", k, q) if exchanged else P.einsum("bihd,bjhd->bhij", q, k)
    site = only(P.einsum("bhij,bjhe->bihe", P.softmax(scores, 3), v))
    assert (site.kind, site.traits, int(site.qk_dim)) == ("attention", (), 1)


@pytest.mark.parametrize(
    ("inner", "outer", "traits"),
    [
        # a query whose keys are all hidden averages over those of the larger number, or of both
        (-1e9, -1e9, ("score-function",)),
        (-6e8, -1e9, ("score-function",)),
        (-1e9, float(np.finfo(np.float32).min), ()),
        (-1e4, -1e9, ()),
    ],
)
@pytest.mark.parametrize("how", [hidden, added])
def test_numbers_that_hide_keys_keep_their_order(
    inner: float, outer: float, traits: tuple[str, ...], how: object
) -> None:
    assert callable(how)
    if how is hidden and inner == outer:
        traits = ()  # both stand in place of scores: equal numbers stay equal
    if how is hidden and inner == -1e4:
        traits = ("score-function",)
    site = only(
        P.matmul(P.softmax(hidden(P.unsqueeze(KEEP, 0), how(window(4, 4), SCORES, inner), outer), 2), V)
    )
    assert site.traits == traits


@pytest.mark.parametrize("inner", [-1e9, -1e10])
def test_a_known_mask_that_is_added_counts_as_its_numbers(inner: float) -> None:
    mask = P.constant(np.where(np.tri(4), 0.0, inner), "float32")
    scores = hidden(P.unsqueeze(KEEP, 0), P.pointwise("add", SCORES, mask), -1e9)
    assert only(P.matmul(P.softmax(scores, 2), V)).traits == ("score-function",)


def test_half_precision_hides_by_its_lowest_number() -> None:
    q, k, v = (leaf(n, 2, rows, 4, dtype="float16") for n, rows in (("q", 9), ("k", 4), ("v", 4)))
    scores = hidden(window(9, 4), P.matmul(q, P.swap(k, 1, 2)), -65504.0)
    site = only(P.matmul(P.softmax(scores, 2), v))
    assert (site.traits, site.empty_row) == ((), "uniform")
    assert site.facts.band is not None


@pytest.mark.parametrize("summed", [False, True])
def test_keys_in_two_meet_queries_that_are_read_twice(summed: bool) -> None:
    """The queries are transposed once per half of the keys; the values may be made on the way to a sum."""
    q, k, v = leaf("q", 5, 2, 4), leaf("k", 2, 6, 4), P.pointwise("add", leaf("v", 2, 6, 3), leaf("c", 3))

    def half(x: Prim, axis: int, at: int) -> Prim:
        return P.slice_(x, axis, 3 * at, 3)

    def both(weights: Prim, values: Prim) -> Prim:
        if not summed:
            return P.matmul(weights, values)
        return P.sum_(P.pointwise("mul", P.unsqueeze(weights, 3), P.unsqueeze(values, 1)), [2])

    products = [P.matmul(P.permute(q, (1, 0, 2)), P.swap(half(k, 1, at), 1, 2)) for at in (0, 1)]
    weights = P.softmax(P.concat(products, 2), 2)
    site = only(P.pointwise("add", *(both(half(weights, 2, at), half(v, 1, at)) for at in (0, 1))))
    assert (site.kind, site.traits, int(site.queries), int(site.keys)) == ("attention", (), 5, 6)


def test_shared_keys_may_be_cast_after_they_are_repeated() -> None:
    def wide(x: Prim) -> Prim:
        x = P.reshape(P.expand(P.unsqueeze(x, 2), (2, 3, 2, 7, 4)), (2, 6, 7, 4))
        return P.cast(x, "float32")

    q = P.cast(leaf("q", 2, 6, 5, 4, dtype="float16"), "float32")
    k, v = (wide(leaf(n, 2, 3, 7, 4, dtype="float16")) for n in "kv")
    site = only(P.cast(P.matmul(P.softmax(P.matmul(q, P.swap(k, 2, 3)), 3), v), "float16"))
    assert (int(site.heads), int(site.kv_heads)) == (6, 3)


@pytest.mark.parametrize("first", [1, 3, 5])
@pytest.mark.parametrize("fill", [-np.inf, -1e4])
def test_keys_in_two_have_one_mask_and_one_temperature(first: int, fill: float) -> None:
    """A single key has no atom: its part of the mask is the mask at its place."""
    q, k, v = leaf("q", 2, 5, 4), leaf("k", 2, 6, 4), leaf("v", 2, 6, 3)
    halves = ((0, first), (first, 6 - first))
    scores = P.concat([P.matmul(q, P.swap(P.slice_(k, 1, *at), 1, 2)) for at in halves], 2)
    scores = P.pointwise("mul", scores, leaf("temperature"))
    weights = P.softmax(hidden(window(5, 6), scores, fill), 2)
    parts = [P.matmul(P.slice_(weights, 2, *at), P.slice_(v, 1, *at)) for at in halves]
    site = only(P.pointwise("add", *parts))
    assert site.traits == (() if fill == -np.inf else ("score-function",))
    assert int(site.keys) == 6
