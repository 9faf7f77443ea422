from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from rewriter.errors import InputError
from rewriter.program import onnx_save
from rewriter.program.onnx import OnnxProgram
from rewriter.program.onnx_save import write_model
from tests.program.onnx_models import attention_inputs, attention_layers, tensor, value


def annotated() -> onnx.ModelProto:
    """Return a model with everything that a round trip has to keep."""
    made = attention_layers(ir_version=10)
    made.producer_name, made.producer_version, made.domain = "someone", "3.1", "org.example"
    made.model_version, made.doc_string = 7, "a model"
    made.metadata_props.add(key="a.first", value="")
    made.metadata_props.add(key="author", value="é")
    made.graph.doc_string = "a graph"
    made.graph.node[0].doc_string = "a node"
    made.graph.node[0].metadata_props.add(key="namespace", value="layer.0")
    made.graph.value_info.append(value("q0", ["batch", 4, "seq", 8]))
    inner = helper.make_graph(
        [helper.make_node("Add", ["y", "big"], ["sum"])], "inner", [], [value("sum", None)],
        [tensor("big", np.full((2, 5, 32), 2, np.float32))],
    )  # fmt: skip
    body = [helper.make_node("Softmax", ["a"], ["b"], axis=-1)]
    made.functions.append(helper.make_function("d", "f", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    made.opset_import.append(helper.make_opsetid("d", 1))
    made.graph.initializer.append(tensor("yes", np.array(True)))
    made.graph.initializer.append(tensor("names", np.array(["a", "b"], object)))
    made.graph.node.append(helper.make_node("If", ["yes"], ["chosen"], then_branch=inner, else_branch=inner))
    made.graph.node.append(helper.make_node("f", ["chosen"], ["z"], domain="d"))
    made.graph.node.append(helper.make_node("Identity", ["names"], ["labels"]))
    made.graph.output.append(value("z", ["batch", "seq", 32]))
    made.graph.output.append(value("labels", [2], onnx.TensorProto.STRING))
    return made


def numbers_out(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Take out what may change on the way: where and how numbers lie, and types that follow from them."""
    numbers = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    for t in graph.initializer:
        t.CopyFrom(onnx.TensorProto(name=t.name, data_type=t.data_type, dims=t.dims))
    kept = [v for v in graph.value_info if v.name not in numbers]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    for attribute in (a for n in graph.node for a in n.attribute if a.HasField("g")):
        numbers |= {f"{attribute.name}/{k}": v for k, v in numbers_out(attribute.g).items()}
    return numbers


@pytest.mark.parametrize("external", [False, True])
def test_everything_survives(tmp_path: Path, external: bool) -> None:
    made = annotated()
    source, target = tmp_path / "source.onnx", tmp_path / "target.onnx"
    if external:
        onnx.save(made, source, save_as_external_data=True, location="weights", size_threshold=64)
        made = annotated()  # saving moved the weights out of the message
    else:
        onnx.save(made, source)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    program = OnnxProgram.load(source)
    program.save(target)

    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name in before} == before
    assert target.with_name("target.onnx.data").exists() == external
    onnx.checker.check_model(str(target), full_check=True)
    again = onnx.load(target)
    was, now = numbers_out(made.graph), numbers_out(again.graph)
    assert was.keys() == now.keys()
    for name, array in was.items():
        np.testing.assert_array_equal(now[name], array)
    assert again == made
    x, mask = attention_inputs()
    for a, b in zip(program.run(x, mask), OnnxProgram.load(target).run(x, mask), strict=True):
        np.testing.assert_array_equal(a, b)


def test_same_model_same_bytes(tmp_path: Path) -> None:
    made = annotated()
    OnnxProgram(made).save(tmp_path / "a.onnx")
    OnnxProgram(annotated()).save(tmp_path / "b.onnx")
    OnnxProgram.load(tmp_path / "a.onnx").save(tmp_path / "c.onnx")
    contents = {p.read_bytes() for p in tmp_path.iterdir()}
    assert len(contents) == 1


def test_the_source_is_never_changed(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(attention_layers(), path, save_as_external_data=True, location="m.bin", size_threshold=64)
    before = path.read_bytes()
    program = OnnxProgram.load(path)
    (tmp_path / "link.onnx").symlink_to(path)
    for target in (path, tmp_path / "link.onnx"):
        with pytest.raises(InputError, match="never changed"):
            program.save(target)
    (tmp_path / "other.onnx.data").symlink_to(tmp_path / "m.bin")
    with pytest.raises(InputError, match="never changed"):
        program.save(tmp_path / "other.onnx")
    assert path.read_bytes() == before
    program.save(tmp_path / "new.onnx")


@pytest.mark.parametrize(
    ("target", "says"),
    [("gone/m.onnx", "No such file"), ("file/m.onnx", "Not a directory"), ("folder", "not a regular file"),
     ("pipe", "not a regular file"), ("x" * 300, "File name too long")],
)  # fmt: skip
def test_what_cannot_be_written_is_refused(tmp_path: Path, target: str, says: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=says):
        OnnxProgram(attention_layers()).save(tmp_path / target)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("external", [False, True])
def test_failure_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, external: bool
) -> None:
    (tmp_path / "m.onnx").write_bytes(b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        write_model(OnnxProgram(attention_layers()).model, tmp_path / "m.onnx", external=external)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_bytes() == b"old"


def test_large_models_go_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_save, "_MOST_INLINE", 8000)
    program = OnnxProgram(attention_layers())
    program.save(tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").exists()
    x, mask = attention_inputs()
    again = OnnxProgram.load(tmp_path / "m.onnx")
    np.testing.assert_array_equal(again.run(x, mask)[0], program.run(x, mask)[0])


def test_output_may_be_replaced_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    OnnxProgram(attention_layers(layers=1)).save(path)
    reader = OnnxProgram.load(path)
    OnnxProgram(attention_layers(layers=2)).save(path)
    x, mask = attention_inputs()
    np.testing.assert_array_equal(
        reader.run(x, mask)[0], OnnxProgram(attention_layers(layers=1)).run(x, mask)[0]
    )
