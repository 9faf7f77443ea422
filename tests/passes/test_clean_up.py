"""Clean-up: what it removes, what it leaves alone, and when it is done at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import rewriter
from rewriter.passes import CleanUp, LayerNorm
from rewriter.program.program import Program
from rewriter.rules import fuse

OPSET = 18


def saved(
    path: Path, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray] | None = None, length: int = 4
) -> Program:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", length])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", length])
    known = [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(nodes, "graph", [x], [y], known)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    helper.set_model_props(model, {"owner": "somebody"})
    onnx.save(model, path)
    return rewriter.load(path)


def wasteful(path: Path) -> Program:
    """1 + 2 of constants, an identity, the same exponential twice, and one that nobody reads."""
    nodes = [
        helper.make_node("Add", ["one", "two"], ["three"]),
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Exp", ["same"], ["a"]),
        helper.make_node("Exp", ["x"], ["b"]),
        helper.make_node("Tanh", ["x"], ["unread"]),
        helper.make_node("Mul", ["a", "three"], ["c"]),
        helper.make_node("Add", ["b", "c"], ["y"]),
    ]
    return saved(path, nodes, {"one": np.array([1.0], np.float32), "two": np.array([2.0], np.float32)})


def operators(program: Program) -> list[str]:
    return [node.op.rpartition("::")[2] for node in program.graph.nodes]


def test_removes_what_is_computed_for_nothing(tmp_path: Path) -> None:
    program = wasteful(tmp_path / "model.onnx")
    made, record = fuse(program, [CleanUp()])
    assert operators(made) == ["Exp", "Mul", "Add"]
    (done,) = record.committed
    assert done.gain == "1 constants fewer, 1 identities fewer, 1 repetitions fewer, 1 unread nodes fewer"
    x = np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_allclose(made.run(x)[0], 4 * np.exp(x), rtol=1e-6)
    made.save(tmp_path / "made.onnx")
    model = onnx.load(tmp_path / "made.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [v.name for v in (*model.graph.input, *model.graph.output)] == ["x", "y"]
    assert {p.key: p.value for p in model.metadata_props}["owner"] == "somebody"
    assert fuse(rewriter.load(tmp_path / "made.onnx"), [CleanUp()])[0].metadata == made.metadata


def test_leaves_a_clean_graph_alone(tmp_path: Path) -> None:
    program = saved(tmp_path / "model.onnx", [helper.make_node("Exp", ["x"], ["y"])])
    made, record = fuse(program, [CleanUp()])
    assert made is program and not record.matches


def test_in_exact_it_only_follows_others(tmp_path: Path) -> None:
    program = wasteful(tmp_path / "model.onnx")
    made, record = fuse(program, [LayerNorm(asked=False), CleanUp(asked=False)])
    assert made is program and not record.matches


def test_follows_what_another_rule_has_done(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("ReduceMean", ["same", "last"], ["mean"]),
        helper.make_node("Sub", ["same", "mean"], ["c"]),
        helper.make_node("Mul", ["c", "c"], ["s"]),
        helper.make_node("ReduceMean", ["s", "last"], ["v"]),
        helper.make_node("Add", ["v", "eps"], ["ve"]),
        helper.make_node("Sqrt", ["ve"], ["d"]),
        helper.make_node("Div", ["c", "d"], ["y"]),
    ]
    known = {"last": np.array([1]), "eps": np.array([1e-5], np.float32)}
    program = saved(tmp_path / "model.onnx", nodes, known)
    made, record = fuse(program, [LayerNorm(asked=False), CleanUp(asked=False)])
    assert [entry.rule for entry in record.committed] == ["layer-norm", "clean-up"]
    assert "Identity" not in operators(made) and "LayerNormalization" in operators(made)


def test_does_not_make_files_grow(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Expand", ["one", "shape"], ["large"]),
        helper.make_node("Add", ["x", "large"], ["y"]),
    ]
    known = {"one": np.array([1.0], np.float32), "shape": np.array([1, 100_000])}
    program = saved(tmp_path / "model.onnx", nodes, known, 100_000)
    made, record = fuse(program, [CleanUp()])
    assert made is program and not record.matches


def test_views_of_views_are_one(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["a"]),
        helper.make_node("Reshape", ["a", "square"], ["b"]),
        helper.make_node("Transpose", ["b"], ["c"], perm=[0, 2, 1]),
        helper.make_node("Transpose", ["c"], ["d"], perm=[0, 2, 1]),
        helper.make_node("Exp", ["d"], ["e"]),
        helper.make_node("Reshape", ["e", "rows"], ["y"]),
    ]
    known = {"flat": np.array([-1]), "square": np.array([-1, 2, 2]), "rows": np.array([-1, 4])}
    program = saved(tmp_path / "model.onnx", nodes, known)
    made, record = fuse(program, [CleanUp()])
    assert operators(made) == ["Reshape", "Exp", "Reshape"] and record.committed
    x = np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(made.run(x)[0], program.run(x)[0])


def test_numbers_of_no_place_are_not_touched(tmp_path: Path) -> None:
    """Random numbers are no constants, and two draws are not one."""
    nodes = [
        helper.make_node("RandomNormal", [], ["a"], shape=[1, 4]),
        helper.make_node("RandomNormal", [], ["b"], shape=[1, 4]),
        helper.make_node("Sub", ["a", "b"], ["c"]),
        helper.make_node("Add", ["x", "c"], ["y"]),
    ]
    program = saved(tmp_path / "model.onnx", nodes)
    assert fuse(program, [CleanUp()])[0] is program


def test_two_draws_of_the_same_odds_are_not_one(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Bernoulli", ["x"], ["a"]),
        helper.make_node("Bernoulli", ["x"], ["b"]),
        helper.make_node("Sub", ["a", "b"], ["y"]),
    ]
    program = saved(tmp_path / "model.onnx", nodes)
    assert fuse(program, [CleanUp()])[0] is program
    of_constants = [
        helper.make_node("Bernoulli", ["odds"], ["a"]),
        helper.make_node("Add", ["x", "a"], ["y"]),
    ]
    program = saved(tmp_path / "constant.onnx", of_constants, {"odds": np.full((1, 4), 0.5, np.float32)})
    assert fuse(program, [CleanUp()])[0] is program
