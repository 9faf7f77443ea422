"""Facts of masks that are made of inputs, the numbers that hide, and what an empty row gives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from rewriter.algebra import prims as P
from rewriter.algebra.evaluate import evaluate
from rewriter.algebra.prims import Prim
from rewriter.algebra.sizes import Size
from rewriter.algebra.term import Read
from rewriter.sites.masks import Mask
from rewriter.sites.site import EmptyRow
from tests.sites.mask_semantics import allowed, analysed, axes_of, check

B = 2
INFINITY = float("inf")
Q_IDS = P.leaf("input", (B, "n"), "int64", "q_ids")
K_IDS = P.leaf("input", (B, "n"), "int64", "k_ids")
SHOWN = P.leaf("input", (B, "n"), "bool", "shown")
LENGTH = P.leaf("input", (B,), "int64", "length")
FLOATS = P.leaf("input", (B, "n"), "float32", "floats")
FULL = P.leaf("input", (B, "n", "n"), "bool", "full")
ROW, COLUMN = P.unsqueeze(P.iota("n"), 1), P.unsqueeze(P.iota("n"), 0)
CAUSAL = P.pointwise("le", COLUMN, ROW)


def by_query(x: Prim) -> Prim:
    return P.unsqueeze(x, 2)


def by_key(x: Prim) -> Prim:
    return P.unsqueeze(x, 1)


def op(fn: str, *operands: Prim) -> Prim:
    return P.pointwise(fn, *operands)


def whole(x: float) -> Prim:
    return P.constant(np.asarray(x, np.int64))


SAME = op("eq", by_query(Q_IDS), by_key(Q_IDS))
BEFORE = op("lt", COLUMN, P.reshape(LENGTH, (B, 1, 1)))
BLOCK = op("eq", op("floordiv", ROW, whole(3)), op("floordiv", COLUMN, whole(3)))

VISIBLE: dict[str, tuple[Prim, str, EmptyRow]] = {
    "document": (SAME, "document", "never"),
    "causal document": (op("and", CAUSAL, SAME), "causal+document", "never"),
    "document in blocks": (op("and", BLOCK, SAME), "block-diagonal+document", "never"),
    "ids of two sequences": (op("eq", by_query(Q_IDS), by_key(K_IDS)), "document", "nan"),
    "ids that may be NaN": (op("eq", by_query(FLOATS), by_key(FLOATS)), "document", "nan"),
    "not the same document": (op("ne", by_query(Q_IDS), by_key(Q_IDS)), "unknown", "nan"),
    "later documents": (op("le", by_key(Q_IDS), by_query(Q_IDS)), "unknown", "nan"),
    "ids of one side": (op("eq", by_key(K_IDS), by_key(Q_IDS)), "padding", "nan"),
    "keys": (by_key(SHOWN), "padding", "nan"),
    "causal, keys": (op("and", CAUSAL, by_key(SHOWN)), "causal+padding", "nan"),
    "document, keys": (op("and", SAME, by_key(SHOWN)), "document+padding", "nan"),
    "queries": (by_query(SHOWN), "query-padding", "nan"),
    "keys and queries": (op("and", by_query(SHOWN), by_key(SHOWN)), "padding+query-padding", "nan"),
    "keys or queries": (op("or", by_query(SHOWN), by_key(SHOWN)), "unknown", "nan"),
    "lengths": (BEFORE, "padding", "nan"),
    "causal, lengths": (op("and", CAUSAL, BEFORE), "causal+padding", "nan"),
    "prefix": (op("or", CAUSAL, BEFORE), "prefix", "never"),
    "prefix, the other way": (
        op("not", op("and", op("ge", COLUMN, P.reshape(LENGTH, (B, 1, 1))), op("lt", ROW, COLUMN))),
        "prefix",
        "never",
    ),
    "causal or shown": (op("or", CAUSAL, by_key(SHOWN)), "unknown", "nan"),
    "full": (FULL, "unknown", "nan"),
    "causal and full": (op("and", CAUSAL, FULL), "causal+unknown", "nan"),
    "not full": (op("not", FULL), "unknown", "nan"),
}


def additive(visible: Prim, fill: float = -INFINITY) -> Prim:
    return op("where", visible, P.constant(0.0, "float32"), P.constant(fill, "float32"))


def proved(bias: Prim) -> Mask:
    n = Size.parse("n")
    return analysed(P.expand(bias, (B, n, n)), axes_of(n, n, Size.of(B)))


@pytest.mark.parametrize("name", VISIBLE)
def test_words(name: str) -> None:
    visible, word, empty = VISIBLE[name]
    found = proved(additive(visible))
    assert (found.facts.mask, found.empty_row) == (word, empty)
    assert found.facts.key_padding == (word in ("padding", "causal+padding"))


def _numbers(n: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "q_ids": np.sort(rng.integers(0, 3, (B, n))),
        "k_ids": rng.integers(0, 3, (B, n)),
        "shown": rng.random((B, n)) < 0.6,
        "length": rng.integers(0, n + 1, (B,)),
        "floats": rng.choice([0.0, 1.0, np.nan], (B, n)),
        "full": rng.random((B, n, n)) < 0.6,
    }


@pytest.mark.parametrize("name", VISIBLE)
def test_facts_are_true(name: str) -> None:
    visible = P.expand(VISIBLE[name][0], (B, "n", "n"))
    found = proved(additive(visible))
    for n in (1, 2, 5, 7):
        for seed in range(4):
            values = _numbers(n, seed)
            (seen,) = evaluate([visible], values, {"n": n})
            for at in range(B):
                assert not (seen[at] & ~allowed(found.facts, n, n, {"n": n})).any()
                if found.facts.segments is None:
                    check(found.facts, seen[at], {"n": n}, name)
            if found.facts.segments is not None:
                assert not (seen & ~_same_ids(found, values, n)).any()
            if found.empty_row == "never":
                assert seen.any(-1).all()


def _same_ids(found: Mask, values: dict[str, np.ndarray], n: int) -> np.ndarray:
    ids = found.facts.segments
    assert ids is not None
    assert isinstance(ids.queries, Read)
    assert isinstance(ids.keys, Read)
    queries, keys = evaluate([ids.queries.prim, ids.keys.prim], values, {"n": n})
    return np.asarray(queries[:, :, None] == keys[:, None, :])


def _complement(seen: Prim, fill: float) -> Prim:
    return op(
        "mul", op("sub", P.constant(1.0, "float32"), P.cast(seen, "float32")), P.constant(fill, "float32")
    )


SMALLEST = {name: float(np.finfo(name).min) for name in ("float16", "float32")}

ADDED: dict[str, tuple[Callable[[], Prim], str, EmptyRow]] = {
    "causal, -inf": (lambda: additive(CAUSAL), "causal", "never"),
    "causal, smallest": (lambda: additive(CAUSAL, SMALLEST["float32"]), "causal", "never"),
    "causal, smallest of 16 bits": (lambda: additive(CAUSAL, SMALLEST["float16"]), "causal", "never"),
    "causal, -1e9": (lambda: additive(CAUSAL, -1e9), "causal", "never"),
    "causal, -1e4": (lambda: additive(CAUSAL, -1e4), "causal", "never"),
    "causal, -100": (lambda: additive(CAUSAL, -100.0), "bias", "nan"),
    "strictly causal, -1e4": (lambda: additive(op("lt", COLUMN, ROW), -1e4), "bias", "nan"),
    "strictly causal, smallest": (
        lambda: additive(op("lt", COLUMN, ROW), SMALLEST["float32"]),
        "causal+bias",  # a row that sees nothing averages over all keys: the numbers have to be added
        "uniform",
    ),
    "keys, -1e4": (lambda: additive(by_key(SHOWN), -1e4), "bias", "nan"),
    "keys, smallest": (lambda: additive(by_key(SHOWN), SMALLEST["float32"]), "padding", "uniform"),
    "causal -inf, keys -1e4": (
        lambda: op("add", additive(CAUSAL), additive(by_key(SHOWN), -1e4)),
        "causal+bias",
        "nan",
    ),
    "causal -1e4, something else": (lambda: op("add", additive(CAUSAL, -1e4), by_key(FLOATS)), "bias", "nan"),
    "causal -1e4, documents": (
        lambda: op("add", additive(CAUSAL, -1e4), additive(SAME, -1e4)),
        "causal+document",
        "never",
    ),
    "complement": (lambda: _complement(by_key(SHOWN), SMALLEST["float32"]), "padding", "uniform"),
    "complement of causal": (lambda: _complement(CAUSAL, -1e4), "causal", "never"),
    "complement of integers": (lambda: _complement(by_key(Q_IDS), SMALLEST["float32"]), "bias", "nan"),
    "logarithm": (lambda: op("log", P.cast(CAUSAL, "float32")), "causal", "never"),
    "logarithm of keys": (lambda: op("log", P.cast(by_key(SHOWN), "float32")), "padding", "nan"),
    "floats": (lambda: by_key(FLOATS), "bias", "nan"),
    "causal and floats": (lambda: op("add", additive(CAUSAL), by_key(FLOATS)), "causal+bias", "nan"),
    "distance": (
        lambda: op("mul", P.cast(op("sub", COLUMN, ROW), "float32"), P.constant(0.5, "float32")),
        "bias",
        "nan",
    ),
    "two bands": (
        lambda: op("add", additive(CAUSAL), additive(op("gt", COLUMN, op("sub", ROW, whole(3))))),
        "window",
        "never",
    ),
    "shown, then hidden again": (
        lambda: op(
            "where",
            op("eq", P.cast(CAUSAL, "float32"), P.constant(1.0, "float32")),
            P.constant(0.0, "float32"),
            op(
                "where",
                op("eq", P.cast(CAUSAL, "float32"), P.constant(0.0, "float32")),
                P.constant(-INFINITY, "float32"),
                P.cast(CAUSAL, "float32"),
            ),
        ),
        "causal",
        "never",
    ),
}


@pytest.mark.parametrize("name", ADDED)
def test_what_is_added(name: str) -> None:
    build, word, empty = ADDED[name]
    found = proved(build())
    assert (found.facts.mask, found.empty_row) == (word, empty)
    assert found.facts.only_band == (word in ("causal", "window"))
    assert (found.rest is None) == found.facts.only_band


def test_windows_that_differ_by_batch_are_documents() -> None:
    """Shifted windows: the mask of a window says which entries were next to each other before the shift."""
    ids = np.array([[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 2, 3]])
    seen = ids[:, :, None] == ids[:, None, :]
    for fill, word, empty in (
        (-INFINITY, "document", "never"),
        (-1e4, "document", "never"),
        (-100.0, "bias", "never"),
    ):
        bias = P.constant(np.where(seen, 0, fill).astype(np.float32))
        found = analysed(bias, axes_of(Size.of(4), Size.of(4), Size.of(4)))
        assert (found.facts.mask, found.empty_row) == (word, empty)
    wrong = seen.copy()
    wrong[2, 0, 1] = True
    bias = P.constant(np.where(wrong, 0, -INFINITY).astype(np.float32))
    assert analysed(bias, axes_of(Size.of(4), Size.of(4), Size.of(4))).facts.mask == "unknown"


@pytest.mark.parametrize(
    ("seen", "word"),
    [
        (np.ones((3, 4), bool), "none"),
        (np.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]], bool), "padding"),
    ],
)
def test_padding_that_differs_by_batch(seen: np.ndarray, word: str) -> None:
    full = np.broadcast_to(seen[:, None, :], (3, 4, 4))
    bias = P.constant(np.where(full, 0, -INFINITY).astype(np.float32))
    assert analysed(bias, axes_of(Size.of(4), Size.of(4), Size.of(3))).facts.mask == word


def test_runs_of_a_constant_document_are_counted() -> None:
    ids = np.repeat(np.arange(4), (3, 1, 5, 2))
    bias = P.constant(np.where(ids[:, None] == ids, 0, -INFINITY).astype(np.float32))
    facts = analysed(bias, axes_of(Size.of(11), Size.of(11))).facts
    assert facts.segments is not None
    assert facts.segments.lengths == (3, 1, 5, 2)


def test_a_mask_too_large_to_evaluate_is_still_compared() -> None:
    n = Size.of(1 << 20)
    i, j = P.unsqueeze(P.iota(n), 1), P.unsqueeze(P.iota(n), 0)
    band = P.pointwise("le", P.pointwise("abs", P.pointwise("sub", i, j)), whole(4096))
    odd = P.pointwise("le", P.pointwise("mul", i, j), whole(7))
    assert analysed(P.expand(additive(band), (n, n)), axes_of(n, n)).facts.mask == "window"
    assert analysed(P.expand(additive(odd), (n, n)), axes_of(n, n)).facts.mask == "unknown"
