"""Files that shrink while they are mapped into memory, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rewriter.cli.truncation import MESSAGE

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGBUS"), reason="no such signal here")

CUT = """
import os
import numpy as np

def inputs():
    os.truncate("weights.bin", 0)
    yield {"x": np.ones((2, 512), np.float32)}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a model with its weights in a file of their own, and data that cuts this file short."""
    weights = numpy_helper.from_array(np.ones((512, 512), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 512])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 512])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin")
    (tmp_path / "cut.py").write_text(CUT)
    return tmp_path


@pytest.mark.parametrize("json_", [False, True])
def test_weights_that_are_cut_short_end_a_command_with_a_line(folder: Path, json_: bool) -> None:
    command = [sys.executable, "-m", "rewriter", "validate", "m.onnx", "m.onnx", "--data", "cut:inputs"]
    before = {p.name for p in folder.iterdir()}
    done = subprocess.run(
        [*command, *(["--json"] if json_ else [])],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, f"error: {MESSAGE}\n")
    assert done.stdout == "" if not json_ else json.loads(done.stdout) == {"error": MESSAGE}
    assert {p.name for p in folder.iterdir()} - {"__pycache__"} == before
