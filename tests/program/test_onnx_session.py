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
