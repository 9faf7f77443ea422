"""Facts of masks against brute force: static and dynamic, odd and coinciding lengths, and near misses."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewriter.algebra import prims as P
from rewriter.algebra.prims import Prim
from rewriter.algebra.sizes import Size
from rewriter.sites.masks import Mask
from rewriter.sites.masks.arrays import shape_of
from rewriter.sites.masks.proof import Proof
from rewriter.sites.values import Known
from tests.sites.mask_semantics import analysed, axes_of, check, numbers

Build = Callable[[Prim, Prim, Size, Size], Prim]


def c(value: float) -> Prim:
    return P.constant(np.asarray(value, np.int64)) if value == int(value) else P.constant(value, "float32")


def op(fn: str, *operands: Prim | int) -> Prim:
    return P.pointwise(fn, *(c(x) if isinstance(x, int) else x for x in operands))


def size(n: Size) -> Prim:
    return P.select(P.iota(1, n), 0, 0)


def both(*parts: Prim) -> Prim:
    result = parts[0]
    for part in parts[1:]:
        result = op("and", result, part)
    return result


def near(a: Prim, b: Prim, width: int) -> Prim:
    return op("le", op("abs", op("sub", a, b)), width)


def clamped(i: Prim, j: Prim, n: Prim, left: int, width: int) -> Prim:
    start = op("minimum", op("maximum", op("sub", i, left), 0), op("sub", n, width))
    return both(op("ge", j, start), op("lt", j, op("add", start, width)))


def rows_and_columns(x: Prim, width: int) -> tuple[Prim, Prim]:
    return op("floordiv", x, width), op("mod", x, width)


def windows_on_grid(i: Prim, j: Prim, width: int, reach: int) -> Prim:
    (y, x), (v, u) = rows_and_columns(i, width), rows_and_columns(j, width)
    return both(near(v, y, reach), near(u, x, reach))


def cube(i: Prim, j: Prim) -> Prim:
    def parts(x: Prim) -> list[Prim]:
        return [op("floordiv", x, 6), op("mod", op("floordiv", x, 3), 2), op("mod", x, 3)]

    return both(*(near(b, a, 1) for a, b in zip(parts(i), parts(j), strict=True)))


def causal(i: Prim, j: Prim) -> Prim:
    return op("le", j, i)


def chunk(i: Prim, j: Prim, n: int) -> Prim:
    return op("eq", op("floordiv", i, n), op("floordiv", j, n))


SQUARE: dict[str, tuple[Build, str]] = {
    "causal": (lambda i, j, n, m: causal(i, j), "causal"),
    "causal, by difference": (lambda i, j, n, m: op("ge", op("sub", i, j), 0), "causal"),
    "causal, not later": (lambda i, j, n, m: op("not", op("gt", j, i)), "causal"),
    "causal, xor": (lambda i, j, n, m: op("xor", op("gt", j, i), P.constant(True)), "causal"),
    "causal, as numbers": (
        lambda i, j, n, m: op("gt", op("mul", P.cast(causal(i, j), "int64"), 2), 1),
        "causal",
    ),
    "causal, where": (
        lambda i, j, n, m: op("ne", op("where", op("lt", i, j), c(0), c(1)), 0),
        "causal",
    ),
    "strictly causal": (lambda i, j, n, m: op("lt", j, i), "causal"),
    "one ahead": (lambda i, j, n, m: op("le", j, op("add", i, 1)), "causal"),
    "anti-causal": (lambda i, j, n, m: op("ge", j, i), "window"),
    "strictly anti-causal": (lambda i, j, n, m: op("gt", j, i), "window"),
    "window": (lambda i, j, n, m: near(i, j, 2), "window"),
    "causal window": (lambda i, j, n, m: both(causal(i, j), op("gt", j, op("sub", i, 3))), "window"),
    "diagonal": (lambda i, j, n, m: op("eq", i, j), "window"),
    "blocks": (lambda i, j, n, m: chunk(i, j, 3), "block-diagonal"),
    "causal blocks": (lambda i, j, n, m: both(causal(i, j), chunk(i, j, 3)), "causal+block-diagonal"),
    "window in blocks": (lambda i, j, n, m: both(near(i, j, 1), chunk(i, j, 4)), "window+block-diagonal"),
    "shifted blocks": (
        lambda i, j, n, m: chunk(op("add", i, 1), op("add", j, 1), 3),
        "block-diagonal",
    ),
    "dilated": (lambda i, j, n, m: op("eq", op("mod", op("sub", i, j), 3), 0), "dilated"),
    "dilated, by residues": (lambda i, j, n, m: op("eq", op("mod", i, 2), op("mod", j, 2)), "dilated"),
    "dilated window": (
        lambda i, j, n, m: both(near(i, j, 4), op("eq", op("mod", op("sub", j, i), 2), 0)),
        "window+dilated",
    ),
    "dilated, moved": (lambda i, j, n, m: op("eq", op("mod", op("sub", j, i), 3), 1), "dilated"),
    "prefix": (lambda i, j, n, m: op("or", causal(i, j), op("lt", j, 2)), "prefix"),
    "prefix, negated": (
        lambda i, j, n, m: op("not", op("and", op("gt", j, i), op("ge", j, 2))),
        "prefix",
    ),
    "sinks": (
        lambda i, j, n, m: both(causal(i, j), op("or", op("ge", j, op("sub", i, 1)), op("lt", j, 1))),
        "causal+prefix",
    ),
    "neighbourhood": (lambda i, j, n, m: clamped(i, j, size(n), 2, 5), "neighbourhood"),
    "neighbourhood, even": (lambda i, j, n, m: clamped(i, j, size(n), 1, 4), "neighbourhood"),
    "neighbourhood, by distance": (
        lambda i, j, n, m: near(j, op("minimum", op("maximum", i, 1), op("sub", size(n), 2)), 1),
        "neighbourhood",
    ),
    "windows on a grid": (lambda i, j, n, m: windows_on_grid(i, j, 3, 1), "neighbourhood"),
    "windows in a cube": (lambda i, j, n, m: cube(i, j), "neighbourhood"),
    "keys hidden": (lambda i, j, n, m: P.pointwise("or", op("ge", j, 1), op("lt", i, 0)), "padding"),
    "causal, keys hidden": (lambda i, j, n, m: both(causal(i, j), op("ge", j, 2)), "causal+padding"),
    "queries hidden": (lambda i, j, n, m: op("or", op("ge", i, 1), op("lt", j, 0)), "query-padding"),
    "both hidden": (lambda i, j, n, m: both(op("ge", i, 1), op("ge", j, 1)), "padding+query-padding"),
    "all": (lambda i, j, n, m: op("le", j, size(n - 1)), "none"),
    "far apart": (lambda i, j, n, m: op("ge", op("abs", op("sub", i, j)), 2), "unknown"),
    "anti-diagonal": (lambda i, j, n, m: op("le", op("add", i, j), 4), "unknown"),
    "causal but in the corner": (
        lambda i, j, n, m: op("or", causal(i, j), both(op("lt", i, 1), op("ge", j, size(n - 1)))),
        "unknown",
    ),
    "blocks so far": (
        lambda i, j, n, m: op("le", op("floordiv", j, 3), op("floordiv", i, 3)),
        "neighbourhood",
    ),
    "causal or in the block": (
        lambda i, j, n, m: op("or", causal(i, j), chunk(i, j, 3)),
        "neighbourhood",
    ),
    "not in the block": (lambda i, j, n, m: op("not", chunk(i, j, 3)), "unknown"),
    "next block": (
        lambda i, j, n, m: op("lt", op("floordiv", j, 3), op("floordiv", i, 3)),
        "unknown",
    ),
    "circle on a grid": (
        lambda i, j, n, m: op(
            "le",
            op(
                "add",
                op("abs", op("sub", op("mod", i, 3), op("mod", j, 3))),
                op("abs", op("sub", op("floordiv", i, 3), op("floordiv", j, 3))),
            ),
            1,
        ),
        "unknown",
    ),
}
"""Masks of queries and keys of one sequence, and the word for them at a length that shows what they are."""

TELLING = 12
LENGTHS = (1, 2, 3, 4, 5, 6, 7, 9, 12, 13)


def additive(visible: Prim, fill: float = -np.inf) -> Prim:
    return P.pointwise("where", visible, P.constant(0.0, "float32"), P.constant(fill, "float32"))


def built(build: Build, n: Size, m: Size) -> Prim:
    i, j = P.unsqueeze(P.iota(n), 1), P.unsqueeze(P.iota(m), 0)
    return P.expand(build(i, j, n, m), (n, m))


def proved(build: Build, n: Size, m: Size, fill: float = -np.inf) -> Mask:
    return analysed(additive(built(build, n, m), fill), axes_of(n, m))


def rows_are_seen(found: Mask, visible: np.ndarray, what: object) -> None:
    if found.empty_row == "never":
        assert visible.any(axis=1).all(), ("a row is empty", what)


@pytest.mark.parametrize("name", SQUARE)
def test_words(name: str) -> None:
    build, word = SQUARE[name]
    static = proved(build, Size.of(TELLING), Size.of(TELLING)).facts
    assert static.mask == word, static


@pytest.mark.parametrize("name", SQUARE)
def test_static_facts_are_true(name: str) -> None:
    build, _ = SQUARE[name]
    for n in LENGTHS:
        found = proved(build, Size.of(n), Size.of(n))
        visible = numbers(built(build, Size.of(n), Size.of(n)), {})
        check(found.facts, visible, {}, (name, n))
        rows_are_seen(found, visible, (name, n))


@pytest.mark.parametrize("name", SQUARE)
def test_dynamic_facts_are_true(name: str) -> None:
    build, _ = SQUARE[name]
    n = Size.parse("n")
    found = proved(build, n, n)
    for length in (*LENGTHS, 24):
        visible = numbers(built(build, n, n), {"n": length})
        check(found.facts, visible, {"n": length}, name)
        rows_are_seen(found, visible, (name, length))


ONLY_STATIC = {"shifted blocks", "causal or in the block", "causal but in the corner"}
"""Masks whose word is another one with a dynamic length."""


@pytest.mark.parametrize("name", [n for n in SQUARE if n not in ONLY_STATIC])
def test_words_with_a_dynamic_length(name: str) -> None:
    build, word = SQUARE[name]
    n = Size.parse("n")
    assert proved(build, n, n).facts.mask == word


@pytest.mark.parametrize("name", SQUARE)
def test_facts_with_a_cache_are_true(name: str) -> None:
    build, _ = SQUARE[name]

    def moved(i: Prim, j: Prim, n: Size, m: Size) -> Prim:
        return build(op("add", i, size(m - n)), j, m, m)

    past, n = Size.parse("past"), Size.parse("n")
    dynamic = proved(moved, n, n + past)
    for rows, before in product((1, 2, 5), (1, 3, 4)):
        visible = numbers(built(moved, n, n + past), {"n": rows, "past": before})
        check(dynamic.facts, visible, {"n": rows, "past": before}, name)
        rows_are_seen(dynamic, visible, (name, rows, before))
        static = proved(moved, Size.of(rows), Size.of(rows + before))
        check(static.facts, visible, {}, name)
        rows_are_seen(static, visible, (name, rows, before))


@pytest.mark.parametrize("name", SQUARE)
def test_facts_of_unequal_lengths_are_true(name: str) -> None:
    build, _ = SQUARE[name]
    n, m = Size.parse("n"), Size.parse("m")
    dynamic = proved(build, n, m)
    for rows, columns in product((1, 3, 8), (1, 4, 6)):
        sizes = {"n": rows, "m": columns}
        visible = numbers(built(build, n, m), sizes)
        for found in (dynamic, proved(build, Size.of(rows), Size.of(columns))):
            check(found.facts, visible, sizes, name)
            rows_are_seen(found, visible, (name, sizes))


@pytest.mark.parametrize("length", [6, 12])
@pytest.mark.parametrize("name", [n for n in SQUARE if SQUARE[n][1] not in ("unknown", "none")])
def test_one_wrong_entry_is_no_fact(name: str, length: int) -> None:
    n = Size.of(length)
    visible = numbers(built(SQUARE[name][0], n, n), {})
    for at in (
        (0, 0),
        (0, length - 1),
        (length - 1, 0),
        (length - 1, length - 1),
        (length // 2, length // 3),
    ):
        wrong = visible.copy()
        wrong[at] = not wrong[at]
        bias = P.constant(np.where(wrong, 0, -np.inf).astype(np.float32))
        found = analysed(bias, axes_of(n, n))
        check(found.facts, wrong, {}, (name, at))
        rows_are_seen(found, wrong, (name, at))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_facts_of_any_combination_are_true(data: st.DataObject) -> None:
    names = sorted(SQUARE)
    chosen = [SQUARE[data.draw(st.sampled_from(names))][0] for _ in range(data.draw(st.integers(2, 3)))]
    how = [data.draw(st.sampled_from(["and", "and", "or", "xor"])) for _ in chosen[1:]]

    def build(i: Prim, j: Prim, n: Size, m: Size) -> Prim:
        result = chosen[0](i, j, n, m)
        for fn, part in zip(how, chosen[1:], strict=True):
            result = op(fn, result, part(i, j, n, m))
        return result

    n = Size.parse("n")
    dynamic = proved(build, n, n)
    for length in (1, 4, 9):
        visible = numbers(built(build, n, n), {"n": length})
        static = proved(build, Size.of(length), Size.of(length))
        for found in (dynamic, static):
            check(found.facts, visible, {"n": length}, how)
            rows_are_seen(found, visible, how)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**36 - 1))
def test_facts_of_any_constant_are_true(rows: int, columns: int, bits: int) -> None:
    flat = [(bits >> k) & 1 for k in range(rows * columns)]
    visible = np.array(flat, bool).reshape(rows, columns)
    bias = P.constant(np.where(visible, 0, -np.inf).astype(np.float32))
    found = analysed(bias, axes_of(Size.of(rows), Size.of(columns)))
    check(found.facts, visible, {})
    rows_are_seen(found, visible, visible)


def test_every_small_constant() -> None:
    for rows, columns in ((1, 3), (3, 1), (2, 2), (3, 3)):
        for bits in product((False, True), repeat=rows * columns):
            visible = np.array(bits).reshape(rows, columns)
            bias = P.constant(np.where(visible, 0, -np.inf).astype(np.float32))
            found = analysed(bias, axes_of(Size.of(rows), Size.of(columns)))
            check(found.facts, visible, {})
            rows_are_seen(found, visible, visible)


def test_equal_masks_are_evaluated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(visible: np.ndarray) -> Proof:
        calls.append(1)
        return shape_of(visible)

    monkeypatch.setattr("rewriter.sites.masks.analysis.shape_of", counted)
    known, n = Known(), Size.of(64)
    for _ in range(12):
        at = np.arange(64)
        array = np.where(abs(at[:, None] - at) % 5 < 2, 0, -np.inf).astype(np.float32)
        assert analysed(P.constant(array), axes_of(n, n), known).facts.mask == "unknown"
    assert len(calls) == 1
