"""ONNX operators that stay opaque, and constants, which do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from rewriter.algebra.evaluate import bind, evaluate
from rewriter.algebra.frontends.onnx import translate
from rewriter.algebra.prims import Constant, Leaf
from rewriter.program.onnx import OnnxProgram
from tests.algebra.frontends.onnx.case import I64, ROW, A, Array, case, check, graph, ints, real, scalar

LEAVES = {
    "active dropout": case("Dropout", A, scalar(0.5), np.array(True), constants=[1, 2]),
    "dropout that may be active": case("Dropout", A, scalar(0.5), np.array(False), constants=[1]),
    "a diagonal": case("Einsum", real(3, 3), equation="ii->i"),
    "remainder of the dividend's sign": case("Mod", I64 - 5, ints(3), constants=[1], fmod=1),
    "only one infinity": case("IsInf", A, detect_negative=0),
    "a real convolution": case("Conv", real(1, 4, 7), real(5, 4, 3), constants=[1], pads=[1, 1], strides=[2]),
    "a grouped convolution": case("Conv", real(1, 4, 7), real(4, 1, 1), constants=[1], group=4),
    "normalisation": case("LayerNormalization", A, ROW, constants=[1]),
    "exclusive running sum": case("CumSum", A, scalar(1), constants=[1], exclusive=1),
    "reflected padding": case("Pad", A, ints(0, 1, 0, 0, 1, 0), constants=[1], mode="reflect"),
    "rounding": case("Round", A),
    "pooling": case("MaxPool", real(1, 2, 9), kernel_shape=[3], strides=[2], ceil_mode=0),
    "upsampling": case("Resize", real(1, 2, 3), None, np.array([1, 1, 2], np.float32), constants=[2]),
    "transposed convolution": case("ConvTranspose", real(1, 2, 5), real(2, 3, 4), constants=[1], strides=[2]),
    "entries by coordinates": case("GatherND", A, np.array([[0, 1], [1, 2]]), constants=[1]),
    "largest": case("ArgMax", A, axis=1, keepdims=0),
    "integer product": case("MatMulInteger", I64.astype(np.uint8), I64.T.astype(np.uint8)),
}


@pytest.mark.parametrize("name", LEAVES)
def test_leaves_have_the_right_shape(name: str) -> None:
    op = LEAVES[name]
    for dynamic in (False, True):
        program = OnnxProgram(op.model(dynamic))
        forms = program.prims()
        form = forms["y0"]
        assert isinstance(form.form, Leaf) and form.form.why.startswith(op.op)
        values = {n: x for n, x in op.values().items() if n in program.inputs}
        (want,) = program.run(**values)
        sizes = bind([forms[n] for n in program.inputs], values)
        assert len(evaluate([form], {"y0": want}, sizes)) == 1  # the shape agrees, or this raises


def test_leaves_inside_operators_that_hold_graphs() -> None:
    program = graph("""
g (float[batch, 4] x, bool flag) => (y) {
    a = Exp (x)
    b = If <then_branch = t () => (float[batch, 4] t0) { t0 = Neg (a) },
            else_branch = e () => (float[batch, 4] e0) { e0 = Identity (a) }> (flag)
    y = Tanh (b)
}""")
    forms = program.prims()
    assert isinstance(forms["b"].form, Leaf)
    assert str(forms["y"].shape[1]) == "4"
    x = real(3, 4)
    (want,) = evaluate([forms["y"]], {"b": -np.exp(x)})
    np.testing.assert_allclose(program.run(x, np.array(True))[0], want, rtol=1e-5)


def test_an_operator_that_does_nothing_keeps_both_names() -> None:
    forms = graph("g (float[2] x) => (z) { y = Identity (x)\n z = Dropout (y) }").prims()
    assert forms["z"].inputs == (forms["y"],) and forms["y"].inputs == (forms["x"],)


def test_weights_are_not_loaded_and_small_constants_are() -> None:
    program = OnnxProgram(case("MatMul", real(3, 64), real(64, 64), constants=[1]).model(False))
    loads: list[str] = []

    def counted(name: str) -> Callable[[], Array]:
        def load() -> Array:
            loads.append(name)
            return np.asarray(program.graph.constants[name]())

        return load

    lazy = replace(program.graph, constants={name: counted(name) for name in program.graph.constants})
    forms = translate(lazy, 17)
    assert not loads and isinstance(forms["x1"].form, Constant)
    evaluate([forms["y0"]], {"x0": real(3, 64)})
    assert loads == ["x1"]


def test_arithmetic_of_constants_is_folded_in_the_precision_of_the_model() -> None:
    program = graph("""
g (float[2, 6] x) => (y) <float third = {0.3333333432674408}, int64 at = {1}> {
    shape = Shape (x)
    width = Gather (shape, at)
    real = Cast <to = 1> (width)
    part = Mul (real, third)
    whole = Floor (part)
    y = Mul (x, whole)
}""")
    forms = program.prims()
    form = forms["whole"].form
    assert isinstance(form, Constant) and form.load() == 2.0
    check(program, {"x": real(2, 6)}, program.run(real(2, 6)))


def test_opaque_operators_of_constants_are_constants() -> None:
    program = graph("""
g (float[2, 6] x) => (y)
<float[6] w = {1, -2, 3, 4, 5, 7}, float[6] s = {1, 1, 2, 1, 1, 1}, int64 ax = {0},
 int8[6] q = {1, 2, -3, 4, 5, 6}, float scale = {0.5}> {
    n = LayerNormalization (w, s)
    c = CumSum (n, ax)
    e = Exp (c)
    d = DequantizeLinear (q, scale)
    f = Add (d, e)
    y = Mul (x, f)
}""")
    forms = check(program, {"x": real(2, 6)}, program.run(real(2, 6)))
    assert not any(isinstance(form.form, Leaf) for name, form in forms.items() if name != "x")


def test_random_operators_are_no_constants() -> None:
    forms = graph("""
g (float[2, 6] x) => (y) {
    r = RandomNormal <shape = [2, 6]> ()
    u = RandomUniformLike (r)
    s = Add (r, u)
    y = Mul (x, s)
}""").prims()
    assert isinstance(forms["r"].form, Leaf) and isinstance(forms["u"].form, Leaf)
    assert not isinstance(forms["s"].form, Constant)
