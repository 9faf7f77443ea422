"""A small ONNX model with one attention, and a way to call the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rewriter.cli import app as app_module


class Said(NamedTuple):
    """What a command left behind."""

    status: int
    out: str
    err: str


Call = Callable[[str], Said]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Return a function that runs the command line in this process."""

    def run(arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["rewriter", *arguments.split()])
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.delenv("REWRITER_DEBUG", raising=False)
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            app_module.run()
        said = capsys.readouterr()
        return Said(int(end.value.code or 0), said.out, said.err)

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Write a self-attention of one head over ``[batch, length, 8]`` and return its path."""
    rng = np.random.default_rng(0)
    names = ("wq", "wk", "wv")
    constants: dict[str, np.ndarray] = {n: rng.standard_normal((8, 8)).astype(np.float32) for n in names}
    constants["scale"] = np.array(8**-0.5, np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "wq"], ["q"], "q"),
        helper.make_node("MatMul", ["x", "wk"], ["k"], "k"),
        helper.make_node("MatMul", ["x", "wv"], ["v"], "v"),
        helper.make_node("Transpose", ["k"], ["kt"], "kt", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"], "scores"),
        helper.make_node("Mul", ["scores", "scale"], ["scaled"], "scaled"),
        helper.make_node("Softmax", ["scaled"], ["weights"], "weights", axis=-1),
        helper.make_node("MatMul", ["weights", "v"], ["y"], "y"),
    ]
    shape: list[str | int | None] = ["batch", "length", 8]
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path
