"""The conformance vectors of every ONNX operator."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from rewriter.algebra.evaluate import bind, evaluate
from rewriter.algebra.frontends.onnx import translate
from rewriter.algebra.prims import Leaf, Softmax
from rewriter.program.onnx import OnnxProgram
from rewriter.program.onnx_graph import graph_view
from rewriter.program.onnx_message import Message
from tests.algebra.frontends.onnx.case import Array, reached


@cache
def conformance() -> list[Any]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [test for test in collect_testcases(None) if test.data_sets]


@pytest.mark.parametrize("expanded", [False, True])
def test_attention_conformance(expanded: bool) -> None:
    tests = {test.name: test for test in conformance() if test.name.startswith("test_attention_")}
    tests = {name: test for name, test in tests.items() if name.endswith("_expanded") == expanded}
    assert len(tests) == 93
    for name, test in tests.items():
        program = OnnxProgram(test.model, name)
        forms = program.prims()
        for inputs, outputs in test.data_sets:
            values = dict(zip(program.inputs, inputs, strict=True))
            half = any(np.asarray(x).dtype in (np.float16, ml_dtypes.bfloat16) for x in inputs)
            tolerance = 2e-2 if half else 1e-5
            got = evaluate([forms[n] for n in program.outputs], values)
            for output, array, want in zip(program.outputs, got, outputs, strict=True):
                assert tuple(map(int, forms[output].shape)) == array.shape == np.shape(want), name
                exact = np.asarray(want).astype(np.float64)
                np.testing.assert_allclose(array, exact, tolerance, tolerance, err_msg=f"{name}: {output}")
        if not expanded:
            assert any(isinstance(form.form, Softmax) for form in reached(forms[program.outputs[0]]))


def test_fused_attention_computes_with_what_it_shows() -> None:
    """Outputs inside the computation are steps of it, so that what they hold can be read and must survive."""
    name = "test_attention_4d_with_past_and_present_qk_matmul_bias"
    (test,) = (test for test in conformance() if test.name == name)
    program = OnnxProgram(test.model)
    forms = program.prims()
    result, *steps = (forms[output] for output in program.outputs)
    assert len(steps) == 3 and reached(result).issuperset(steps)


def frozen(test: Any) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Return a conformance test's model with its small integer inputs as constants, and the other inputs."""
    model = onnx.ModelProto()
    model.CopyFrom(test.model)
    values: dict[str, Array] = {}
    for value, x in zip(test.model.graph.input, test.data_sets[0][0], strict=False):
        if not isinstance(x, np.ndarray | np.generic):
            continue
        if x.dtype in (np.int64, np.int32) and x.ndim <= 1:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(x), value.name))
            model.graph.input.remove(value)
        else:
            values[value.name] = np.asarray(x)
    return model, values


def test_every_standard_operator() -> None:
    """Whatever is no leaf has the values of the operator's own conformance test, and every shape is right."""
    compared = 0
    for test in conformance():
        if test.name.startswith("test_stft"):
            continue  # onnx's own shape inference is wrong about it (onesided)
        model, values = frozen(test)
        versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
        view = graph_view(Message(model, lambda tensor: tensor))
        forms = translate(view, versions[0] if versions else 20)
        sizes = bind([forms[name] for name in values], values)
        for name, want in zip(view.outputs, test.data_sets[0][1], strict=True):
            if not isinstance(want, np.ndarray | np.generic) or want.dtype.kind in "cOSU":
                continue
            form, leaves = forms[name], [x for x in reached(forms[name]) if isinstance(x.form, Leaf)]
            if isinstance(form.form, Leaf) and form.form.why.endswith("of unknown rank"):
                continue
            if any(leaf.value not in values for leaf in leaves):
                bind([form, *(forms[n] for n in values)], {**values, name: np.asarray(want)})
                continue
            (got,) = evaluate([form], values, sizes)
            arrays = (want, *values.values())
            tolerance = 1e-5 if all(x.dtype.itemsize > 2 or x.dtype.kind in "biu" for x in arrays) else 2e-2
            tolerance = 0.3 if want.dtype.itemsize == 1 and want.dtype.kind not in "biu" else tolerance
            exact = np.asarray(want).astype(np.float64)
            np.testing.assert_allclose(got, exact, tolerance, tolerance, err_msg=test.name)
            compared += 1
    assert compared > 1100
