"""What must be raised, with every field; and what must not, with the reason."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from rewriter.algebra import prims as P
from rewriter.algebra.prims import Prim
from rewriter.algebra.sizes import Size, SizeLike
from rewriter.sites import AttentionSite, Refusal, raise_sites
from tests.sites.prim_program import PrimProgram


def raised(*outputs: Prim) -> tuple[tuple[AttentionSite, ...], tuple[Refusal, ...]]:
    return raise_sites(PrimProgram(*outputs))  # type: ignore[arg-type]


def operand(name: str, *shape: SizeLike, dtype: str = "float32") -> Prim:
    return P.leaf("input", shape, dtype, name)


def number(value: float) -> Prim:
    return P.constant(value, "float32")


def later_hidden(rows: SizeLike, columns: SizeLike) -> Prim:
    return P.pointwise("le", P.unsqueeze(P.iota(columns), 0), P.unsqueeze(P.iota(rows), 1))


Q, K, V = operand("q", 2, 6, 7, 4), operand("k", 2, 6, 9, 4), operand("v", 2, 6, 9, 5)
SCORES = P.matmul(Q, P.swap(K, 2, 3))
EXP = P.pointwise("exp", P.pointwise("sub", SCORES, P.reduce("max", SCORES, [3], True)))
SQUARE = P.matmul(Q, P.swap(operand("k7", 2, 6, 7, 4), 2, 3))
V7 = operand("v7", 2, 6, 7, 5)
MASKED = P.softmax(P.pointwise("add", SCORES, operand("m", 7, 9)), 3)
GUARDED = P.pointwise("where", P.pointwise("isnan", MASKED), P.constant(0.0, "float32"), MASKED)
SMALLEST = float(np.finfo(np.float32).min)


def tail(scores: Prim, v: Prim = V) -> Prim:
    return P.matmul(P.softmax(scores, 3), v)


def masked(fill: float) -> Prim:
    return tail(P.pointwise("where", later_hidden(7, 7), SQUARE, number(fill), dtype="float32"), V7)


def grouped() -> Prim:
    def spread(x: Prim) -> Prim:
        b, g, s, d = x.shape
        return P.reshape(P.expand(P.unsqueeze(x, 2), (b, g, 3, s, d)), (b, 6, s, d))

    k, v = spread(operand("kg", 2, 2, 9, 4)), spread(operand("vg", 2, 2, 9, 5))
    return P.matmul(P.softmax(P.matmul(Q, P.swap(k, 2, 3)), 3), v)


def packed(batch: SizeLike, length: SizeLike) -> Prim:
    x = operand("x", batch, length, 3 * 24)
    split = P.permute(P.reshape(x, (batch, length, 3, 6, 4)), (2, 0, 3, 1, 4))
    flat = (Size.of(batch) * 6, length, 4)
    q, k, v = (P.reshape(P.select(split, 0, at), flat) for at in range(3))
    result = P.matmul(P.softmax(P.matmul(q, P.swap(k, 1, 2)), 2), v)
    return P.reshape(result, (batch, 6, length, 4))


FIRES: dict[str, tuple[Callable[[], Prim], dict[str, object]]] = {
    "plain": (lambda: tail(SCORES), {"queries": 7, "keys": 9, "qk_dim": 4, "v_dim": 5, "mask": "none"}),
    "scaled": (lambda: tail(P.pointwise("div", SCORES, number(2.0))), {"scale": 0.5}),
    "scale on q and k": (
        lambda: tail(
            P.matmul(P.pointwise("mul", Q, number(0.5)), P.swap(P.pointwise("mul", K, number(0.5)), 2, 3))
        ),
        {"scale": 0.25},
    ),
    "exp over sum": (
        lambda: P.matmul(P.pointwise("div", EXP, P.sum_(EXP, [3], True)), V),
        {"queries": 7, "keys": 9},
    ),
    "normalised after the values": (
        lambda: P.pointwise("div", P.matmul(EXP, V), P.sum_(EXP, [3], True)),
        {"queries": 7, "keys": 9},
    ),
    "reciprocal of the sum": (
        lambda: P.matmul(P.pointwise("mul", EXP, P.pointwise("reciprocal", P.sum_(EXP, [3], True))), V),
        {"queries": 7, "keys": 9},
    ),
    "exp of log-softmax": (
        lambda: P.matmul(P.pointwise("exp", P.softmax(SCORES, 3, log=True)), V),
        {"keys": 9},
    ),
    "multiply and sum": (
        lambda: tail(P.sum_(P.pointwise("mul", P.unsqueeze(Q, 3), P.unsqueeze(K, 2)), [4])),
        {"queries": 7, "keys": 9, "qk_dim": 4},
    ),
    "transposed scores": (
        lambda: P.einsum("bhji,bhjd->bhid", P.softmax(P.matmul(K, P.swap(Q, 2, 3)), 2), V),
        {"queries": 7, "keys": 9},
    ),
    "causal, -inf": (lambda: masked(-np.inf), {"mask": "causal", "empty_row": "never"}),
    "causal, finite": (lambda: masked(SMALLEST), {"mask": "causal", "empty_row": "never"}),
    "open mask, -inf": (
        lambda: tail(P.pointwise("where", operand("m", 2, 1, 7, 9, dtype="bool"), SCORES, number(-np.inf))),
        {"mask": "unknown", "empty_row": "nan"},
    ),
    "open mask, finite": (
        lambda: tail(P.pointwise("where", operand("m", 2, 1, 7, 9, dtype="bool"), SCORES, number(SMALLEST))),
        {"mask": "unknown", "empty_row": "uniform"},
    ),
    "key padding": (
        lambda: tail(P.pointwise("where", operand("m", 2, 1, 1, 9, dtype="bool"), SCORES, number(-np.inf))),
        {"mask": "padding", "empty_row": "nan"},
    ),
    "guarded": (lambda: P.matmul(GUARDED, V), {"empty_row": "zero", "mask": "bias"}),
    "constant window": (
        lambda: tail(
            P.pointwise(
                "add",
                SQUARE,
                P.constant(
                    np.where(np.abs(np.arange(7)[:, None] - np.arange(7)) <= 2, 0, -np.inf).astype(np.float32)
                ),
            ),
            V7,
        ),
        {"mask": "window", "empty_row": "never"},
    ),
    "grouped": (grouped, {"heads": 6, "kv_heads": 2, "batch": 2}),
    "packed, 3-D": (lambda: packed(2, 7), {"heads": 6, "batch": 2}),
    "packed, 3-D, dynamic": (lambda: packed("b", "s"), {"heads": 6, "batch": "b", "queries": "s"}),
    "key length 1": (
        lambda: tail(P.matmul(Q, P.swap(operand("k1", 2, 6, 1, 4), 2, 3)), operand("v1", 2, 6, 1, 5)),
        {"keys": 1},
    ),
    "k with permuted axes, sizes coincide": (
        lambda: P.matmul(
            P.softmax(
                P.matmul(operand("q8", 1, 8, 8, 8), P.permute(operand("k8", 1, 8, 8, 8), (0, 2, 1, 3))), 3
            ),
            operand("v8", 1, 8, 8, 8),
        ),
        {"heads": 8},
    ),
}


@pytest.mark.parametrize("name", FIRES)
def test_fires(name: str) -> None:
    build, expected = FIRES[name]
    sites, refused = raised(build())
    assert [s.id for s in sites] == ["attention.0"], refused
    (site,) = sites
    for field, value in expected.items():
        found = site.facts.mask if field == "mask" else getattr(site, field)
        assert (found.plain() if hasattr(found, "plain") else found) == value, field


KEEPS: dict[str, tuple[Callable[[], Prim], str | None]] = {
    "class head": (
        lambda: P.softmax(P.matmul(operand("h", 3, 8), operand("w", 8, 10)), 1),
        "is not followed by a sum with values",
    ),
    "softmax over the queries": (lambda: P.matmul(P.softmax(SCORES, 2), V), "over the queries"),
    "softmax over two axes": (
        lambda: P.matmul(P.reshape(P.softmax(P.reshape(SCORES, (2, 6, 63)), 2), (2, 6, 7, 9)), V),
        "more axes",
    ),
    "weights changed afterwards": (
        lambda: P.matmul(P.pointwise("mul", P.softmax(SCORES, 3), operand("gate", 7, 9)), V),
        "changed after the softmax",
    ),
    "scores come from nowhere": (lambda: tail(operand("s", 2, 6, 7, 9)), "no product of a query"),
    "sum of something else": (
        lambda: P.matmul(
            P.pointwise(
                "div", EXP, P.sum_(P.pointwise("exp", P.pointwise("mul", SCORES, number(2.0))), [3], True)
            ),
            V,
        ),
        "sum of something else",
    ),
    "two softmaxes mixed": (
        lambda: P.matmul(
            P.pointwise("add", P.softmax(SCORES, 3), P.softmax(P.pointwise("mul", SCORES, number(2.0)), 3)), V
        ),
        "mix several normalisers",
    ),
    "plain linear": (lambda: P.linear(operand("x", 3, 8), operand("w", 5, 8)), None),
}


TRAITS: dict[str, tuple[Callable[[], Prim], str]] = {
    "soft cap": (lambda: tail(P.pointwise("tanh", SCORES)), "softcap"),
    "temperature per key": (lambda: tail(P.pointwise("mul", SCORES, operand("t", 9))), "score-function"),
    "scores used twice": (lambda: tail(P.pointwise("mul", SCORES, SCORES)), "score-function"),
    "finite fill that does not hide": (
        lambda: tail(P.pointwise("where", operand("m", 7, 9, dtype="bool"), SCORES, number(-1e4))),
        "score-function",
    ),
    "epsilon in the denominator": (
        lambda: P.matmul(
            P.pointwise("div", EXP, P.pointwise("add", P.sum_(EXP, [3], True), number(1e-6))), V
        ),
        "weight-function",
    ),
}


@pytest.mark.parametrize("name", TRAITS)
def test_traits(name: str) -> None:
    build, trait = TRAITS[name]
    sites, _ = raised(build())
    assert [(s.kind, s.traits) for s in sites] == [("attention", (trait,))]


@pytest.mark.parametrize("name", KEEPS)
def test_keeps(name: str) -> None:
    build, reason = KEEPS[name]
    sites, refused = raised(build())
    assert not sites
    if reason is None:
        assert not refused
    else:
        assert any(reason in r.reason for r in refused), refused


def test_reader_of_the_weights_is_reported() -> None:
    weights = P.softmax(SCORES, 3)
    sites, _ = raised(P.matmul(weights, V), P.pointwise("neg", weights))
    assert [v for v, _ in sites[0].consumers]


def test_twelve_layers_in_order() -> None:
    x = operand("x", 2, 7, 24)
    for layer in range(12):
        projected = [P.matmul(x, operand(f"w{layer}{n}", 24, 24)) for n in "qkv"]
        parts = [P.permute(P.reshape(p, (2, 7, 6, 4)), (0, 2, 1, 3)) for p in projected]
        y = P.matmul(P.softmax(P.matmul(parts[0], P.swap(parts[1], 2, 3)), 3), parts[2])
        x = P.pointwise("add", x, P.reshape(P.permute(y, (0, 2, 1, 3)), (2, 7, 24)))
    sites, refused = raised(x)
    assert [s.id for s in sites] == [f"attention.{k}" for k in range(12)]
    assert not refused
    assert len({s.signature for s in sites}) == 1
