from __future__ import annotations

import time

import numpy as np
import pytest
from onnx import TensorProto, helper

from rewriter.errors import InputError
from rewriter.program.onnx import OnnxProgram
from rewriter.program.onnx_session import PATIENCE
from tests.program.onnx_models import model, tensor, value


def looping(trips: int) -> OnnxProgram:
    """Return a model that negates its input so many times."""
    step = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Neg", ["s"], ["t"])],
        "step",
        [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("s", [2])],
        [value("on", [], TensorProto.BOOL), value("t", [2])],
    )
    made = model(
        [helper.make_node("Loop", ["trips", "yes", "x"], ["y"], body=step)],
        [value("x", [2])],
        [value("y", [2])],
    )
    made.graph.initializer.extend([tensor("trips", np.array(trips)), tensor("yes", np.array(True))])
    return OnnxProgram(made, "looping")


def test_a_loop_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATIENCE, "0.2")
    start = time.monotonic()
    with pytest.raises(InputError, match=r"did not finish in 0\.2 s: a loop in it may not end"):
        looping(2**63 - 1).run(np.ones(2, np.float32))
    assert time.monotonic() - start < 20


def test_a_loop_that_ends_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATIENCE, "100")
    np.testing.assert_array_equal(looping(3).run(np.ones(2, np.float32))[0], [-1, -1])


def masked() -> OnnxProgram:
    """Return attention whose mask has one row for all queries, which ONNX Runtime 1.31 does not run."""
    made = model(
        [helper.make_node("Attention", ["q", "k", "v", "mask"], ["y"])],
        [
            value("q", [1, 2, "I", 4]),
            value("k", [1, 2, "J", 4]),
            value("v", [1, 2, "J", 4]),
            value("mask", [1, 1, 1, "J"]),
        ],
        [value("y", [1, 2, "I", 4])],
        opset=23,
        ir_version=10,
    )
    return OnnxProgram(made, "masked")


def operands(keys: int, values: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"q": (1, 2, 3, 4), "k": (1, 2, keys, 4), "v": (1, 2, values, 4), "mask": (1, 1, 1, keys)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_shapes_of_the_standard_that_the_runtime_lacks_are_run_by_the_reference_evaluator() -> None:
    given = operands(5, 5)
    program = masked()
    scores = given["q"] @ given["k"].swapaxes(2, 3) / 2 + given["mask"]
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    for _ in range(2):  # the second run knows
        np.testing.assert_allclose(program.run(**given)[0], weights @ given["v"], rtol=1e-5, atol=1e-6)


def test_what_nothing_can_run_is_told_without_the_runtime_s_own_source() -> None:
    with pytest.raises(InputError, match=r"ONNX Runtime cannot run masked: .*Attention") as failure:
        masked().run(**operands(5, 6))
    assert "onnxruntime_src" not in str(failure.value)
