from __future__ import annotations

import os
import pickle
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from onnx.external_data_helper import set_external_data

from rewriter.errors import InputError
from rewriter.program.onnx import OnnxProgram
from rewriter.program.onnx_file import read_model
from rewriter.program.onnx_wire import WireError, cut_payloads, splice_payloads
from tests.program.onnx_models import FLOAT, attention_layers, model, tensor, value


def identity(**more: object) -> onnx.ModelProto:
    made = model([helper.make_node("Identity", ["x"], ["y"])], [value("x", [2])], [value("y", [2])])
    for name, setting in more.items():
        setattr(made, name, setting)
    return made


def matmul(weight: np.ndarray) -> onnx.ModelProto:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return model([node], [value("x", ["n", weight.shape[0]])], [value("y", None)], {"w": weight})


def weights(of: ir.Model) -> np.ndarray:
    array: np.ndarray = of.graph.initializers["w"].const_value.numpy()  # type: ignore[union-attr]
    return array


def external(folder: Path, location: str = "w.bin", **entries: Any) -> Path:
    """Write a model whose weight lies in another file, which is written too."""
    weight = np.arange(64, dtype=np.float32).reshape(8, 8)
    made = matmul(weight)
    (folder / "w.bin").write_bytes(weight.tobytes())
    set_external_data(made.graph.initializer[0], location, **entries)
    made.graph.initializer[0].ClearField("raw_data")
    path = folder / "m.onnx"
    path.write_bytes(made.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"a model\nof text, long enough to be one\n" * 9, "a text file"),
        (pickle.dumps({"weights": [1.0] * 50}), "pickle"),
        (b"PK\x03\x04" + b"\0" * 100, "zip archive"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "truncated"),
        (b"\xff" * 100, "truncated"),
        (b"\x08\x08", "expected an ONNX model"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says):
        read_model(path)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: os.mkfifo(path), "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: path.symlink_to(path), "cannot be read"),
    ],
    ids=["missing", "directory", "pipe", "device", "loop"],
)
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, make: Callable[[Path], None], says: str) -> None:
    make(tmp_path / "m.onnx")
    with pytest.raises(InputError, match=says):
        read_model(tmp_path / "m.onnx")


def nested_functions(depth: int) -> onnx.ModelProto:
    """Return a model that calls a function that calls another twice, and so on."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]
    bodies = [[helper.make_node("Identity", ["a"], ["b"])]]
    bodies += [
        [
            helper.make_node(f"f{k}", ["a"], ["t"], domain="d"),
            helper.make_node(f"f{k}", ["t"], ["b"], domain="d"),
        ]
        for k in range(depth)
    ]
    functions = [
        helper.make_function("d", f"f{k}", ["a"], ["b"], body, imports) for k, body in enumerate(bodies)
    ]
    node = helper.make_node(f"f{depth}", ["x"], ["y"], domain="d")
    return model([node], [value("x", [2])], [value("y", [2])], functions=functions, domains=("d",))


def recursive_function() -> onnx.ModelProto:
    made = nested_functions(1)
    made.functions[0].node[0].CopyFrom(helper.make_node("f1", ["a"], ["b"], domain="d"))
    return made


def negative_sizes() -> onnx.ModelProto:
    made = matmul(np.ones((8, 8), np.float32))
    made.graph.initializer[0].dims[:] = [-8, -8]
    return made


def huge_sizes() -> onnx.ModelProto:
    made = matmul(np.ones((64, 64), np.float32))
    made.graph.initializer[0].dims[:] = [1 << 62, 1 << 62]
    return made


def cycle() -> onnx.ModelProto:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Neg", ["a"], ["b"])]
    return model(nodes, [value("x", [2])], [value("b", [2])])


def one_node(node: onnx.NodeProto) -> onnx.ModelProto:
    return model([node], [value("x", [2]), value("z", [2])], [value("y", [2])])


def outer_value_as_output() -> onnx.ModelProto:
    inner = helper.make_graph([], "inner", [], [value("x", [2])])
    made = one_node(helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner))
    made.graph.initializer.append(tensor("c", np.array(True)))
    return made


def sparse() -> onnx.ModelProto:
    made = identity()
    made.graph.sparse_initializer.append(
        helper.make_sparse_tensor(
            tensor("s", np.ones(1, np.float32)), tensor("i", np.zeros(1, np.int64)), [4]
        )
    )
    return made


def of_opset(version: int) -> onnx.ModelProto:
    made = identity()
    made.opset_import[0].version = version
    return made


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: nested_functions(40), "expands to more than"),
        (recursive_function, "calls itself"),
        (negative_sizes, "not negative"),
        (huge_sizes, "bytes; expected"),
        (cycle, "form a cycle"),
        (lambda: one_node(helper.make_node("Add", ["x", "gone"], ["y"])), "'gone'"),
        (lambda: one_node(helper.make_node("Add", ["x", "z"], ["x"])), "computed twice"),
        (lambda: one_node(helper.make_node("Neg", ["x"], ["other"])), "'y'"),
        (
            lambda: one_node(helper.make_node("Einsum", ["x", "z"], ["y"], equation="......ij,...kj->...ik")),
            "malformed einsum",
        ),
        (outer_value_as_output, "computed by nothing"),
        (sparse, "sparse"),
        (lambda: of_opset(10), "opset 10"),
        (lambda: of_opset(1000), "opset 1000"),
        (lambda: model([], [value("x", [2]), value("x", [2])], []), "two inputs of one name"),
    ],
)
def test_invalid_models_are_refused_in_no_time(
    tmp_path: Path, make: Callable[[], onnx.ModelProto], says: str
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(make().SerializeToString())
    start = time.monotonic()
    with pytest.raises(InputError, match=says):
        read_model(path)
    assert time.monotonic() - start < 5


def test_nodes_out_of_order_are_sorted(tmp_path: Path) -> None:
    nodes = [helper.make_node("Neg", ["a"], ["y"]), helper.make_node("Abs", ["x"], ["a"])]
    path = tmp_path / "m.onnx"
    path.write_bytes(model(nodes, [value("x", [2])], [value("y", [2])]).SerializeToString())
    program = OnnxProgram.load(path)
    assert [n.op for n in program.graph.nodes] == ["ai.onnx::Abs", "ai.onnx::Neg"]
    np.testing.assert_array_equal(program.run(np.array([1, -2], np.float32))[0], [-1, -2])


def test_external_data_is_read(tmp_path: Path) -> None:
    file = read_model(external(tmp_path))
    assert file.external and {Path(name).name for name in file.files} == {"m.onnx", "w.bin"}
    np.testing.assert_array_equal(weights(file.model), np.arange(64).reshape(8, 8))


@pytest.mark.parametrize(
    ("location", "says"),
    [("/etc/passwd", "relative path"), ("../w.bin", "relative path"), ("a/../../w.bin", "relative path"),
     ("gone.bin", "gone.bin does not exist"), ("link.bin", "a link that leaves"),
     ("folder", "is a directory"),
     ("pipe.bin", "not a regular file"), ("", "relative path")],
)  # fmt: skip
def test_external_data_stays_in_the_folder(tmp_path: Path, location: str, says: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(b"\0" * 256)
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe.bin")
    with pytest.raises(InputError, match=says):
        read_model(external(folder, location))


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"offset": 4}, "truncated"),
        ({"length": 128}, "has 128 bytes; expected 256"),
        ({"offset": 1 << 62}, "truncated"),
        ({"length": 1 << 62}, "expected 256"),
    ],
)
def test_external_data_fits_its_file(tmp_path: Path, entries: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_model(external(tmp_path, **entries))


def test_links_of_a_download_cache_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    external(blobs)
    for name in ("m.onnx", "w.bin"):
        os.rename(blobs / name, blobs / f"hash-{name}")
        (snapshot / name).symlink_to(blobs / f"hash-{name}")
    assert read_model(snapshot / "m.onnx").external


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int8", "int64", "uint8", "bool"])
def test_inline_weights_are_views_of_the_file(tmp_path: Path, dtype: str) -> None:
    weight = np.random.default_rng(0).integers(0, 2, (40, 70)).astype(dtype)
    path = tmp_path / "m.onnx"
    path.write_bytes(matmul(weight).SerializeToString())
    array = weights(read_model(path).model)
    assert array.dtype == weight.dtype and not array.flags.owndata and not array.flags.writeable
    np.testing.assert_array_equal(array, weight)


@pytest.mark.parametrize(
    "dtype", [ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]
)
def test_types_that_numpy_lacks(tmp_path: Path, dtype: type) -> None:
    weight: np.ndarray = (np.arange(41 * 70).reshape(41, 70) % 7).astype(dtype)
    path = tmp_path / "m.onnx"
    path.write_bytes(matmul(weight).SerializeToString())
    array = weights(read_model(path).model)
    assert array.dtype == weight.dtype
    np.testing.assert_array_equal(array.astype(np.float32), weight.astype(np.float32))


def test_float_fields_are_cut_too() -> None:
    made = matmul(np.ones((2, 2), np.float32))
    made.graph.initializer[0].CopyFrom(
        helper.make_tensor("w", FLOAT, (64, 64), np.arange(4096, dtype=np.float32))
    )
    assert len(made.SerializeToString()) > 16384
    assert len(cut_payloads(memoryview(made.SerializeToString()))) < 300


def test_cut_and_splice_are_inverse() -> None:
    made = attention_layers()
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=tensor("t", np.ones((30, 30), np.float32)))],
        "inner", [], [value("c", None)], [tensor("i", np.zeros((30, 30), np.float32))],
    )  # fmt: skip
    made.graph.node.append(helper.make_node("If", ["cond"], ["z"], then_branch=inner, else_branch=inner))
    data = made.SerializeToString()
    cut = cut_payloads(memoryview(data))
    assert len(cut) < len(data) / 3

    lengths = {
        int(e["offset"]): int(e["length"])
        for t in _tensors(onnx.ModelProto.FromString(cut).graph)
        if (e := {x.key: x.value for x in t.external_data})
    }
    assert len(lengths) > 6
    back = b"".join(splice_payloads(cut, lambda offset: data[offset : offset + lengths[offset]]))
    assert onnx.ModelProto.FromString(back) == made
    assert b"".join(splice_payloads(cut, lambda offset: None)) == cut


def _tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    found = list(graph.initializer)
    for attribute in (a for n in graph.node for a in n.attribute):
        if attribute.HasField("t"):
            found.append(attribute.t)
        if attribute.HasField("g"):
            found += _tensors(attribute.g)
    return found


def test_deep_nesting_ends() -> None:
    data = b""
    for _ in range(3000):
        attribute = b"\x32" + _length(data) + data
        node = b"\x2a" + _length(attribute) + attribute
        data = b"\x0a" + _length(node) + node
    with pytest.raises(WireError, match="nested"):
        cut_payloads(memoryview(b"\x3a" + _length(data) + data))


def _length(data: bytes) -> bytes:
    size, out = len(data), bytearray()
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    return bytes([*out, size])


def hostile_base() -> bytes:
    made = attention_layers(layers=1)
    inner = helper.make_graph([helper.make_node("Neg", ["y"], ["n"])], "inner", [], [value("n", None)])
    function = helper.make_function(
        "d", "f", ["a"], ["b"], [helper.make_node("Softmax", ["a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    made.functions.append(function)
    made.opset_import.append(helper.make_opsetid("d", 1))
    made.graph.node.append(helper.make_node("f", ["y"], ["z"], domain="d"))
    made.graph.initializer.append(tensor("yes", np.array(True)))
    made.graph.node.append(helper.make_node("If", ["yes"], ["w"], then_branch=inner, else_branch=inner))
    data: bytes = made.SerializeToString()
    return data


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_load_or_are_refused(
    tmp_path: Path, seed: int, recwarn: pytest.WarningsRecorder
) -> None:
    rng = random.Random(seed)
    whole = hostile_base()
    structure = cut_payloads(memoryview(whole))
    path = tmp_path / "m.onnx"
    refused: list[str] = []
    for trial in range(60):
        data = bytearray(structure if trial % 2 else whole)
        if trial % 4 == 0:
            del data[rng.randrange(len(data)) :]
        for _ in range(rng.choice([1, 2, 20])):
            if data:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        start = time.monotonic()
        try:
            program = OnnxProgram.load(path)
            assert program.graph.nodes
            for load in program.graph.constants.values():
                load()
        except InputError as error:
            refused.append(str(error))
        assert time.monotonic() - start < 5
    assert 10 < len(refused) < 60
    assert not any("\n" in message for message in refused)
