from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rewriter.algebra.prims import Prim, einsum, leaf, linear, pointwise, softmax
from rewriter.algebra.sizes import Size
from rewriter.report.cost_share import LENGTH, cost_shares, model_operations


def attention(length: int | str, dim: int) -> Any:
    """Return a program of one projection and one attention, as far as costs need it."""
    x = leaf("input", (1, length, dim), "float32", "x")
    q = linear(x, leaf("weight", (dim, dim), "float32", "w")).named("q")
    scores = einsum("bie,bje->bij", q, x)
    output = einsum("bij,bje->bie", softmax(pointwise("exp", scores), 2), x).named("y")
    n, d = Size.of(length), Size.of(dim)
    site = SimpleNamespace(
        id="attention.0", batch=Size.of(1), heads=Size.of(1), queries=n, keys=n, qk_dim=d, v_dim=d
    )
    prims: dict[str, Prim] = {"x": x, "q": q, "y": output}
    return SimpleNamespace(prims=lambda: prims, sites=(site,))


@pytest.mark.parametrize(("length", "at"), [(7, 7), ("n", LENGTH)])
def test_share_is_attention_over_everything(length: int | str, at: int) -> None:
    program = attention(length, 5)
    n = Size.of(length)
    assert model_operations(program) == 2 * n * 5 * 5 + 2 * n * n * 10
    shares, binding = cost_shares(program)
    assert shares == {"attention.0": pytest.approx(10 * at / (10 * at + 25))}
    assert binding == ({} if length == 7 else {"n": LENGTH})


def test_sizes_that_cannot_be_computed_are_left_out() -> None:
    program = attention("round(n)", 5)
    assert cost_shares(program)[0] == {}
