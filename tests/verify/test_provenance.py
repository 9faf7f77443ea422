from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from rewriter.errors import InputError
from rewriter.program.fx import trace
from rewriter.verify import provenance as module
from rewriter.verify.provenance import file_hash, fingerprints, provenance, read_from


@pytest.mark.parametrize("size", [0, 1, module.BLOCK - 1, module.BLOCK, 2 * module.BLOCK + 1])
def test_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path, size: int) -> None:
    data = bytes(i % 251 for i in range(size))
    (tmp_path / "m.onnx").write_bytes(data)
    found = file_hash(tmp_path / "m.onnx")
    assert (found.sha256, found.size) == (hashlib.sha256(data).hexdigest(), size)


def test_hash_of_a_directory_sees_names_and_contents(tmp_path: Path) -> None:
    def folder(name: str, **files: bytes) -> str:
        for file, data in files.items():
            path = tmp_path / name / "sub" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return file_hash(tmp_path / name).sha256

    first = folder("a", x=b"1", y=b"2")
    assert folder("b", y=b"2", x=b"1") == first
    assert folder("c", x=b"1", y=b"3") != first
    assert folder("d", x=b"1", z=b"2") != first
    assert folder("e", x=b"2", y=b"1") != first
    assert file_hash(tmp_path / "a").size == 2


def test_what_names_no_file_is_passed_over_and_nothing_twice(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(b"x")
    found = provenance([str(file), "zoo:byte-lm", None, file, "package:callable"], seed=7)
    assert [f.path for f in found.files] == [str(file)]
    assert (found.seed, found.command) == (7, None)
    assert found.to_dict()["files"][0]["bytes"] == 1


def test_versions_are_of_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKAGES", ("numpy", "no-such-distribution-here"))
    found = provenance([], seed=0).versions
    import numpy

    assert found["numpy"] == numpy.__version__
    assert set(found) == {"python", "numpy"}


def test_command_line_can_be_copied_back_into_a_shell() -> None:
    import shlex

    words = ["rewriter", "validate", "a b.onnx", "--budget", "cos>=0.9", "it's"]
    command = provenance([], 0, words).command
    assert command is not None and shlex.split(command) == words


def test_what_is_no_file_is_an_error_not_a_hang(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="neither a file nor a directory"):
        provenance([tmp_path / "pipe"], 0)


def test_external_data_is_listed_as_seen_from_where_the_model_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    from rewriter.program.load import load

    (tmp_path / "models").mkdir()
    weight = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    value = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [64, 64]) for n in "xy"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", value[:1], value[1:], [weight]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(
        model, tmp_path / "models/m.onnx", save_as_external_data=True, location="m.weights", size_threshold=0
    )
    monkeypatch.chdir(tmp_path)
    program = load("models/m.onnx")
    assert list(read_from("models/m.onnx", program.files)) == ["models/m.weights"]
    found = provenance(["models/m.onnx"], 0, files=read_from("models/m.onnx", program.files)).files
    assert [f.path for f in found] == ["models/m.onnx", "models/m.weights"]
    assert found[1].size == 64 * 64 * 4


def test_models_that_come_from_no_file_have_a_hash(tmp_path: Path) -> None:
    first = trace(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
    second = trace(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
    found = fingerprints({"zoo:a": first, "zoo:b": second, "zoo:c": first})
    assert found["zoo:a"] == found["zoo:c"] != found["zoo:b"] and len(found["zoo:a"]) == 64
    first.save(tmp_path / "p.pt2")
    assert fingerprints({str(tmp_path / "p.pt2"): first}) == {}
    assert provenance([], 0, models=found).to_dict()["models"] == found
