"""Where rules are tried: work grows as the graph does, and not with what cannot fit."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, helper

from rewriter.passes import Gelu, LayerNorm, Silu
from rewriter.program.onnx import OnnxProgram
from rewriter.rules import call, find, mean, softmax, sum_, tensor
from rewriter.rules import cuts as cuts_module
from rewriter.rules.find import ending
from rewriter.rules.pattern import Pattern, axis
from tests.program.onnx_models import model, value

X, Y, D = tensor("x"), tensor("y"), axis("d")


def layers(count: int) -> OnnxProgram:
    """Return a model of nothing but GELUs, norms and gates, spelled out."""
    nodes: list[NodeProto] = []

    def put(op: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, list(inputs), [f"v{len(nodes)}"], **attributes))
        return f"v{len(nodes) - 1}"

    at = "x"
    for _ in range(count):
        erf = put("Erf", put("Div", at, "root"))
        at = put("Mul", put("Mul", at, put("Add", erf, "one")), "half")
        apart = put("Sub", at, put("ReduceMean", at, axes=[-1]))
        spread = put("ReduceMean", put("Mul", apart, apart), axes=[-1])
        at = put("Mul", put("Div", apart, put("Sqrt", put("Add", spread, "eps"))), "scale")
        at = put("Mul", at, put("Sigmoid", at))
    numbers = {"root": 2**0.5, "one": 1.0, "half": 0.5, "eps": 1e-5}
    constants = {name: np.array(number, np.float32) for name, number in numbers.items()}
    constants["scale"] = np.arange(1, 7, dtype=np.float32)
    return OnnxProgram(model(nodes, [value("x", [2, 6])], [value(at, [2, 6])], constants), "layers")


def opened(count: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many values are taken apart to find what fits."""
    calls = Counter[str]()
    own = cuts_module._opened

    def counted(term: object) -> object:
        calls["opened"] += 1
        return own(term)  # type: ignore[arg-type]

    program = layers(count)
    with monkeypatch.context() as patch:
        patch.setattr(cuts_module, "_opened", counted)
        found, refused = find.find(program, [Gelu(), LayerNorm(), Silu()])
    assert len(found) == 3 * count and not refused
    return calls["opened"]


def test_work_grows_as_the_graph_does(monkeypatch: pytest.MonkeyPatch) -> None:
    few, some, many = (opened(n, monkeypatch) for n in (4, 8, 16))
    assert many - some == 2 * (some - few)


@pytest.mark.parametrize(
    ("formula", "last"),
    [
        (call("exp", X), {"exp"}),
        (softmax(X, D), {"softmax", "div", "mul"}),
        (sum_(X * Y, D), {"sum"}),
        (mean(X, D), {"sum", "div", "mul"}),
        (X + Y, {"add", "sub"}),
        (2.0 * (X + Y), {"add", "mul"}),
        (X / Y, {"div", "mul"}),
        (X + X, {"add", "mul"}),
    ],
)
def test_what_a_formula_may_end_with(formula: Pattern, last: set[str]) -> None:
    assert last <= ending(formula)


@pytest.mark.parametrize("formula", [X + Y, X * Y, softmax(X, D), sum_(X, D), mean(X, D)])
def test_what_it_may_not_end_with(formula: Pattern) -> None:
    assert ending(formula).isdisjoint({"exp", "tanh", "max", "where"})
