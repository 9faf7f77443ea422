from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from rewriter.algebra.sizes import Size
from rewriter.program.onnx import OnnxProgram
from tests.program.onnx_models import FLOAT, attention_layers, model, tensor, value


def test_shapes_and_types_are_inferred() -> None:
    graph = OnnxProgram(attention_layers()).graph
    assert graph.inputs == ("x", "mask") and graph.outputs == ("y",)
    batch, seq = Size.symbol("batch"), Size.symbol("seq")
    assert graph.values["x"].shape == (batch, seq, Size.of(32))
    assert graph.values["q0"].shape == (batch, Size.of(4), seq, Size.of(8))
    assert graph.values["o1"].dtype == "float32"
    assert graph.values["q_shape"].dtype == "int64"
    assert set(graph.constants) >= {"w_q0", "q_shape", "scale"}
    np.testing.assert_array_equal(graph.constants["q_shape"](), [0, 0, 4, 8])


@pytest.mark.parametrize("name", [None, "", "?", "unknown", "None", "-1", "*"])
def test_axes_without_a_name_are_not_equal(name: str | None) -> None:
    add = helper.make_node("MatMul", ["x", "w"], ["y"])
    made = model([add], [value("x", [name, name, 4])], [value("y", None)], {"w": np.ones((4, 4), np.float32)})
    shape = OnnxProgram(made).graph.values["x"].shape
    assert shape is not None and shape[0] != shape[1] and not shape[0].static


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("batch", "batch"),
        ("past + 1", "past + 1"),
        ("2*(n - 1) // 3", "(2*(n - 1)) // 3"),
        ("4 tokens", "_4_tokens"),
        ("p2o.Dim.0", "p2o_Dim_0"),
        ("(a+b)**8", "_a_b___8"),
        ("f(x)", "f_x_"),
        ("a*1.5", "a_1_5"),
        ("lambda", "_lambda"),
        ("größe", "größe"),
        ("x" * 100, "x" * 40),
        ("(" * 60 + "a" + ")" * 60, "_" * 40),
    ],
)
def test_named_axes(name: str, size: str) -> None:
    made = model([helper.make_node("Neg", ["x"], ["y"])], [value("x", [name])], [value("y", None)])
    shape = OnnxProgram(made).graph.values["x"].shape
    assert shape is not None and shape[0] == Size.parse(size) and str(shape[0]) == str(Size.parse(size))


def test_different_names_stay_different() -> None:
    made = model([helper.make_node("Neg", ["x"], ["y"])], [value("x", ["a.b", "a_b", "a-b ", "a.b", "a/b"])],
                 [value("y", None)])  # fmt: skip
    shape = OnnxProgram(made).graph.values["x"].shape
    assert shape is not None and len(set(shape)) == 4 and shape[0] == shape[3]


def test_fresh_names_avoid_those_of_the_file() -> None:
    made = model(
        [helper.make_node("Add", ["x", "x"], ["y"])], [value("x", ["_d0", None])], [value("y", None)]
    )
    shape = OnnxProgram(made).graph.values["x"].shape
    assert shape is not None and shape[1] != Size.symbol("_d0")


def test_constants_are_no_nodes_and_names_are_unique() -> None:
    nodes = [
        helper.make_node("Constant", [], ["c"], value=tensor("t", np.arange(3.0, dtype=np.float32))),
        helper.make_node("Constant", [], ["k"], value_ints=[1, 2]),
        helper.make_node("Constant", [], ["f"], value_float=2.5),
        helper.make_node("Add", ["x", "c"], ["a"], name="same"),
        helper.make_node("Mul", ["a", "f"], ["b"], name="same"),
        helper.make_node("Clip", ["b", "", "f"], ["d"]),
        helper.make_node("Split", ["d", "k"], ["p", "q"]),
        helper.make_node("LayerNormalization", ["q", "s"], ["n", "", "deviation"]),
        helper.make_node("Identity", ["n"], ["y"]),
    ]
    made = model(nodes, [value("x", [3])], [value("y", [2])], {"s": np.ones(2, np.float32)})
    graph = OnnxProgram(made).graph
    assert [n.name for n in graph.nodes] == [
        "same", "same_1", "Clip_2", "Split_3", "LayerNormalization_4", "Identity_5"
    ]  # fmt: skip
    assert graph.nodes[2].inputs == ("b", None, "f")
    assert graph.nodes[4].outputs == ("n", "LayerNormalization_4:1", "deviation")
    assert graph.producer("c") is None and graph.values["k"].shape == (Size.of(2),)
    assert {name: load().tolist() for name, load in graph.constants.items()} == {
        "s": [1, 1], "c": [0, 1, 2], "k": [1, 2], "f": 2.5
    }  # fmt: skip
    assert all(name in graph.values for n in graph.nodes for name in n.outputs)


def test_outer_values_that_inner_graphs_read_are_inputs() -> None:
    deepest = helper.make_graph(
        [helper.make_node("Add", ["inner", "far"], ["sum"])], "deepest", [], [value("sum", None)]
    )
    then = helper.make_graph(
        [
            helper.make_node("Abs", ["near"], ["inner"]),
            helper.make_node("If", ["c"], ["r"], then_branch=deepest, else_branch=deepest),
        ],
        "then", [], [value("r", None)],
    )  # fmt: skip
    direct = helper.make_graph(
        [helper.make_node("Identity", ["far"], ["f"])], "direct", [], [value("f", [2])]
    )
    nodes = [
        helper.make_node("Neg", ["x"], ["near"]),
        helper.make_node("Exp", ["x"], ["far"]),
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=direct),
    ]
    made = model(nodes, [value("x", [2]), value("c", [], onnx.TensorProto.BOOL)], [value("y", [2])])
    program = OnnxProgram(made)
    assert program.graph.nodes[2].inputs[0] == "c"
    assert sorted(v for v in program.graph.nodes[2].inputs if v) == ["c", "far", "near"]
    x = np.array([1.0, -2.0], np.float32)
    part = program.extract(["near", "far", "c"], ["y"])
    result = part({"near": x, "far": x, "c": np.array(True)})[0]
    np.testing.assert_array_equal(result, np.abs(x) + x)


def test_calls_of_functions_are_nodes() -> None:
    body = [helper.make_node("Softmax", ["a"], ["b"], axis=-1)]
    function = helper.make_function("my.domain", "f", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    node = helper.make_node("f", ["x"], ["y"], domain="my.domain")
    made = model(
        [node], [value("x", [2, 3])], [value("y", None)], functions=[function], domains=("my.domain",)
    )
    graph = OnnxProgram(made).graph
    assert graph.nodes[0].op == "my.domain::f"
    assert graph.values["y"].shape == (Size.of(2), Size.of(3))


def test_wrong_claims_of_a_file_do_not_stop_inference() -> None:
    made = model([helper.make_node("Neg", ["x"], ["a"]), helper.make_node("Abs", ["a"], ["y"])],
                 [value("x", [2, 3])], [value("y", [7])])  # fmt: skip
    made.graph.value_info.append(value("a", [9, 9, 9]))
    graph = OnnxProgram(made).graph
    assert graph.values["a"].shape == graph.values["y"].shape == (Size.of(2), Size.of(3))


def test_unknown_operators_leave_types_open() -> None:
    nodes = [helper.make_node("Secret", ["x"], ["a"], domain="d"), helper.make_node("Neg", ["a"], ["y"])]
    made = model(nodes, [value("x", [2])], [value("y", None, FLOAT)], domains=("d",))
    graph = OnnxProgram(made).graph
    assert graph.values["a"].shape is None and graph.values["a"].dtype is None


def test_initializers_that_are_inputs_are_constants() -> None:
    made = attention_layers(ir_version=3)
    made.graph.input.extend(value(t.name, list(t.dims), t.data_type) for t in made.graph.initializer)
    graph = OnnxProgram(made).graph
    assert graph.inputs == ("x", "mask") and "w_q0" in graph.constants


def test_large_graphs_are_quick(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", [f"v{k}", "c"], [f"v{k + 1}"]) for k in range(20_000)]
    made = model(nodes, [value("v0", ["b", 4])], [value("v20000", ["b", 4])], {"c": np.ones(4, np.float32)})
    onnx.save(made, tmp_path / "m.onnx")
    program = OnnxProgram.load(tmp_path / "m.onnx")
    start = time.process_time()
    assert len(program.graph.nodes) == 20_000
    assert time.process_time() - start < 3  # measured 0.4 s


MEASURE = """
import resource, sys
from rewriter.program.onnx import OnnxProgram
OnnxProgram.load(sys.argv[1]).graph
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
program = OnnxProgram.load(sys.argv[2])
assert program.graph.constants["w"]().shape == (20_000, 1000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_weights(tmp_path: Path) -> None:
    for name, rows in (("small", 2), ("large", 20_000)):  # the large one has 80 MB, inline
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        weight = np.zeros((rows, 1000), np.float32)
        made = model([node], [value("x", [1, rows])], [value("y", None)], {"w": weight})
        (tmp_path / name).write_bytes(made.SerializeToString())
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "small"), str(tmp_path / "large")]
    grown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(grown) < 10_000  # kB
