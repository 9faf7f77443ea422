from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper

from rewriter.errors import InputError
from rewriter.lower.emitter import Emitter
from rewriter.lower.errors import EmitError
from rewriter.program.onnx import OnnxProgram
from tests.program.onnx_models import attention_inputs, attention_layers, model, value


@pytest.fixture(scope="module")
def program() -> OnnxProgram:
    return OnnxProgram(attention_layers(), "small.onnx")


def of_types(*dtypes: int) -> OnnxProgram:
    """Return a program that gives its inputs back."""
    nodes = [helper.make_node("Identity", [f"x{k}"], [f"y{k}"]) for k in range(len(dtypes))]
    inputs = [value(f"x{k}", ["n", 2], t) for k, t in enumerate(dtypes)]
    return OnnxProgram(model(nodes, inputs, [value(f"y{k}", ["n", 2], t) for k, t in enumerate(dtypes)]))


# running


def test_inputs_by_position_and_by_name(program: OnnxProgram) -> None:
    x, mask = attention_inputs()
    expected = program.run(x, mask)
    assert len(expected) == 1 and expected[0].shape == (2, 5, 32)
    for result in (program.run(x, mask=mask), program.run(mask=mask, x=x)):
        np.testing.assert_array_equal(result[0], expected[0])


def test_torch_tensors_are_inputs(program: OnnxProgram) -> None:
    torch = pytest.importorskip("torch")
    x, mask = attention_inputs()
    result = program.run(
        torch.tensor(x, requires_grad=True).transpose(0, 1).transpose(0, 1), torch.tensor(mask)
    )
    np.testing.assert_array_equal(result[0], program.run(x, mask)[0])
    half = torch.arange(4).reshape(2, 2).to(torch.bfloat16)
    (back,) = of_types(onnx.TensorProto.BFLOAT16).run(half)
    assert back.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(back.astype(np.float32), half.float().numpy())


@pytest.mark.parametrize(
    ("given", "named", "says"),
    [
        ((), {}, "'x' \\(float32 \\[batch, seq, 32\\]\\); it is missing"),
        ((0, 0, 0), {}, "takes 2 inputs"),
        ((0,), {"x": 0}, "'x' is given twice"),
        ((0, 0), {"other": 0}, "'other' is not an input"),
        ((np.zeros((2, 5, 31), np.float32), 0), {}, "given with shape \\[2, 5, 31\\]"),
        ((np.zeros((5, 32), np.float32), 0), {}, "given with shape \\[5, 32\\]"),
        ((np.zeros((2, 5, 32)), 0), {}, "given as float64"),
        ((np.array(["a"]), 0), {}, "given as <U1"),
    ],
)
def test_wrong_inputs_are_named(program: OnnxProgram, given: Any, named: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        program.run(*given, **named)


def test_casts_that_lose_nothing_are_made() -> None:
    types = onnx.TensorProto
    small = of_types(types.INT64, types.FLOAT, types.BOOL, types.DOUBLE, types.INT32)
    given = [
        np.ones((1, 2), np.int32),
        [[1, 2]],
        np.ones((1, 2), bool),
        np.ones((1, 2), np.float32),
        [[3, 4]],
    ]
    results = small.run(*given)
    assert [r.dtype.name for r in results] == ["int64", "float32", "bool", "float64", "int32"]
    for lost in ([[1.5, 2.0]], np.ones((1, 2), np.uint64), [[2**70, 0]]):
        with pytest.raises(InputError, match="'x0'"):
            of_types(types.INT64).run(lost)


@pytest.mark.parametrize("dtype", [np.float16, np.uint8, np.int8, np.float64, bool, ml_dtypes.bfloat16])
def test_types_pass_through(dtype: Any) -> None:
    code = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x = np.array([[0, 1], [1, 1]]).astype(dtype)
    (result,) = of_types(code).run(x)
    assert result.dtype == x.dtype
    np.testing.assert_array_equal(result.astype(np.float32), x.astype(np.float32))


def test_strings_pass_through() -> None:
    (result,) = of_types(onnx.TensorProto.STRING).run(np.array([["a", "é"]]))
    assert result.tolist() == [["a", "é"]]


def test_what_the_runtime_refuses_is_one_line(program: OnnxProgram) -> None:
    node = helper.make_node("Secret", ["x"], ["y"], domain="d")
    unknown = model([node], [value("x", [2])], [value("y", [2])], domains=("d",))
    with pytest.raises(InputError, match=r"ONNX Runtime cannot load secret\.onnx") as caught:
        OnnxProgram(unknown, "secret.onnx").run(np.zeros(2, np.float32))
    assert "\n" not in str(caught.value)
    x, mask = attention_inputs()
    with pytest.raises(InputError, match=r"ONNX Runtime cannot run small\.onnx"):
        program.run(x, mask[:, :, :3, :3])


def test_large_weights_are_used_in_place(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node(
            "Constant", [], ["c"], value=onnx.numpy_helper.from_array(rng.normal(size=(40, 40)))
        ),
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Cast", ["a"], ["b"], to=onnx.TensorProto.DOUBLE),
        helper.make_node("MatMul", ["b", "c"], ["y"]),
    ]
    weight = rng.normal(size=(31, 40)).astype(np.float32)
    made = model(
        nodes, [value("x", ["n", 31])], [value("y", ["n", 40], onnx.TensorProto.DOUBLE)], {"w": weight}
    )
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    x = rng.normal(size=(3, 31)).astype(np.float32)
    constant = onnx.numpy_helper.to_array(nodes[0].attribute[0].t)
    expected = (x.astype(np.float64) @ weight) @ constant
    np.testing.assert_allclose(
        OnnxProgram.load(tmp_path / "m.onnx").run(x)[0], expected, rtol=1e-4, atol=1e-4
    )


# parts


def all_values(program: OnnxProgram, *names: str) -> dict[str, np.ndarray]:
    given = dict(zip(program.inputs, attention_inputs(), strict=True))
    return given | dict(zip(names, program.extract(program.inputs, names)(given), strict=True))


def test_a_part_computes_what_the_whole_does(program: OnnxProgram) -> None:
    known = all_values(program, "q1", "k_t1", "v_all1", "weights1", "o1", "y")
    part = program.extract(["q1", "k_t1", "mask", "v_all1"], ["o1", "weights1"])
    for name, result in zip(["o1", "weights1"], part(known), strict=True):
        np.testing.assert_allclose(result, known[name], rtol=1e-6, atol=1e-6)
    (rest,) = program.extract(["o1"], ["y"])(known)
    np.testing.assert_array_equal(rest, known["y"])


def test_any_value_may_be_an_output(program: OnnxProgram) -> None:
    known = all_values(program, "q0")
    outputs = ["x", "scale", "q0", "q0", "w_q0"]
    results = program.extract(["x"], outputs)(known)
    np.testing.assert_array_equal(results[0], known["x"])
    np.testing.assert_array_equal(results[1], np.float32(8**-0.5))
    np.testing.assert_array_equal(results[2], results[3])
    assert results[4].shape == (32, 32)


def test_a_constant_may_be_an_input(program: OnnxProgram) -> None:
    known = all_values(program, "raw0", "scores0")
    twice = program.extract(["raw0", "scale"], ["scores0"])(known | {"scale": np.array(2, np.float32)})
    np.testing.assert_array_equal(twice[0], 2 * known["raw0"])


def test_given_values_win_over_computed_ones() -> None:
    nodes = [
        helper.make_node("Split", ["x"], ["a", "b"], axis=0),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    made = OnnxProgram(model(nodes, [value("x", [4])], [value("y", [2])]))
    x, a = np.arange(4, dtype=np.float32), np.array([100, 100], np.float32)
    np.testing.assert_array_equal(made.extract(["x", "a"], ["y"])({"x": x, "a": a})[0], [102, 103])
    np.testing.assert_array_equal(made.extract(["x", "a"], ["a", "b"])({"x": x, "a": a})[0], a)


def test_what_is_read_for_its_size_need_not_be_given() -> None:
    """``x`` is split into ``a``, and its length tells how to reshape what comes of ``a``."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"]),
        helper.make_node("Exp", ["x"], ["a"]),
        helper.make_node("Neg", ["a"], ["b"]),
        helper.make_node("Shape", ["t"], ["shape"]),
        helper.make_node("Reshape", ["b", "shape"], ["y"]),
        helper.make_node("Secret", ["t"], ["hidden"], domain="d"),
        helper.make_node("Reshape", ["b", "hidden"], ["z"]),
    ]
    outputs = [value("y", ["M", "N"]), value("z", None)]
    made = OnnxProgram(model(nodes, [value("x", ["N", "M"])], outputs, domains=("d",)))
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(made.extract(["a"], ["y"])({"a": a})[0], -a.reshape(3, 2))
    with pytest.raises(InputError, match="graph input 'x'"):
        made.extract(["a"], ["z"])


def test_what_one_node_computes_together_is_not_taken_apart() -> None:
    """The present keys are an output of the node that reads the new ones."""
    nodes = [helper.make_node("Attention", ["q", "k", "v", "", "kp", "vp"], ["y", "ks", "vs"])]
    shape: list[int | str | None] = [1, 2, 3, 4]
    inputs = [value(name, shape) for name in ("q", "k", "v", "kp", "vp")]
    made = OnnxProgram(model(nodes, inputs, [value(n, None) for n in ("y", "ks", "vs")], opset=23))
    with pytest.raises(InputError, match="graph input 'k'"):
        made.extract(["q", "ks", "vs"], ["y"])


@pytest.mark.parametrize(
    ("inputs", "outputs", "says"),
    [
        (["q0"], ["o0"], "graph input 'x'"),
        ([], ["nothing"], "no value 'nothing'"),
        (["no"], ["y"], "no value 'no'"),
    ],
)
def test_parts_that_are_none(program: OnnxProgram, inputs: list[str], outputs: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        program.extract(inputs, outputs)


def test_a_type_that_is_not_known_is_that_of_the_array() -> None:
    nodes = [helper.make_node("Secret", ["x"], ["a"], domain="d"), helper.make_node("Neg", ["a"], ["y"])]
    secret = OnnxProgram(model(nodes, [value("x", [2])], [value("y", [2])], domains=("d",)))
    part = secret.extract(["a"], ["y"])
    for dtype in (np.float32, np.float64):
        (result,) = part({"a": np.ones(2, dtype)})
        assert result.dtype == dtype


@pytest.mark.parametrize("target", ["onnx", "ort", "onnx:23", "onnx:24"])
def test_new_computations_run(program: OnnxProgram, target: str) -> None:
    names = ["q1", "k1", "v1", "mask"]
    known = all_values(program, *names, "o1")

    def build(e: Emitter, inputs: Any) -> Any:
        assert [str(n) for n in e.shape(inputs[0])] == ["batch", "4", "seq", "8"]
        assert e.dtype(inputs[3]) == "float32" and e.target == target
        return e.attention(*inputs[:3], scale=8**-0.5, bias=inputs[3], empty_row="never")

    (result,) = program.emit(names, build, known, target=target)(known)
    np.testing.assert_allclose(result, known["o1"], rtol=1e-5, atol=1e-6)


def test_a_computation_may_be_nothing(program: OnnxProgram) -> None:
    known = all_values(program)
    (result,) = program.emit(["x"], lambda e, xs: xs[0], known)(known)
    np.testing.assert_array_equal(result, known["x"])


def test_a_target_that_is_none(program: OnnxProgram) -> None:
    with pytest.raises(EmitError, match="torch"):
        program.emit(["x"], lambda e, xs: xs[0], all_values(program), target="torch")


def test_every_value_has_a_primitive_form(program: OnnxProgram) -> None:
    prims = program.prims()
    assert prims is program.prims() and prims["o0"].shape == program.graph.values["o0"].shape


def test_runs_and_saves_without_its_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(attention_layers(), path)
    loaded = OnnxProgram.load(path)
    path.unlink()
    x, mask = attention_inputs()
    result = loaded.run(x, mask)
    loaded.save(path.with_name("again.onnx"))
    np.testing.assert_array_equal(OnnxProgram.load(path.with_name("again.onnx")).run(x, mask)[0], result[0])
