"""Parts that differ in nothing but names are one session; all others are not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from onnx import NodeProto, helper

from rewriter.errors import InputError
from rewriter.program import onnx_compiled
from rewriter.program.onnx import OnnxProgram
from rewriter.program.onnx_session import Session
from tests.program.onnx_models import model, value

LAYERS = 3


def layers(scales: Sequence[float]) -> OnnxProgram:
    """Return a model of layers ``tanh(x · scale)``, by names ``h1``, ``h2``, …"""
    nodes: list[NodeProto] = []
    for k, _ in enumerate(scales):
        nodes.append(helper.make_node("Mul", [f"h{k}", f"scale{k}"], [f"s{k}"], name=f"scaling {k}"))
        nodes.append(helper.make_node("Tanh", [f"s{k}"], [f"h{k + 1}"]))
    constants = {f"scale{k}": np.array(scale, np.float32) for k, scale in enumerate(scales)}
    return OnnxProgram(model(nodes, [value("h0", [2])], [value(f"h{len(scales)}", [2])], constants), "layers")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has been compiled."""
    names: list[str] = []
    session = Session

    def counted(*given: object) -> object:
        names.append(str(given[1]))
        return session(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(onnx_compiled, "Session", counted)
    return names


@pytest.mark.parametrize(("scales", "sessions"), [((2.0, 2.0, 2.0), 1), ((2.0, 0.5, 2.0), 2)])
def test_layers_are_compiled_once_if_their_numbers_are_the_same(
    scales: Sequence[float], sessions: int, made: list[str]
) -> None:
    program, x = layers(scales), np.array([0.3, -1.0], np.float32)
    for k, scale in enumerate(scales):
        (y,) = program.extract([f"h{k}"], [f"h{k + 1}"])({f"h{k}": x, "not an input": x})
        np.testing.assert_allclose(y, np.tanh(scale * x), rtol=1e-5)
    assert len(made) == sessions


def test_the_order_of_inputs_is_that_of_each_part() -> None:
    nodes = [helper.make_node("Sub", ["a", "b"], ["c"]), helper.make_node("Sub", ["b", "c"], ["d"])]
    program = OnnxProgram(model(nodes, [value("a", [1]), value("b", [1])], [value("d", [1])]), "differences")
    one, two = np.array([1.0], np.float32), np.array([5.0], np.float32)
    assert program.extract(["a", "b"], ["c"])({"b": one, "a": two})[0] == 4
    assert program.extract(["c", "b"], ["d"])({"b": one, "c": two})[0] == -4


def test_an_error_has_the_names_of_the_model() -> None:
    nodes = [
        helper.make_node("Tanh", ["x"], ["h"]),
        helper.make_node("Nothing", ["h"], ["y"], name="odd one"),
    ]
    program = OnnxProgram(model(nodes, [value("x", [1])], [value("y", [1])]), "odd")
    with pytest.raises(InputError, match=r"cannot load a part of odd.*odd one"):
        program.extract(["h"], ["y"])


def test_large_constants_are_not_compared(made: list[str]) -> None:
    large = np.ones(2000, np.float32)
    nodes = [helper.make_node("Mul", ["x", "w"], ["h"]), helper.make_node("Mul", ["h", "w"], ["y"])]
    program = OnnxProgram(model(nodes, [value("x", [1])], [value("y", [2000])], {"w": large}), "large")
    for start, end in (("x", "h"), ("h", "y")):
        program.extract([start], [end])
    assert len(made) == 2
