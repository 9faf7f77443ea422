"""Initializers that are inputs, too: constants before IR version 4, defaults of inputs from then on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

import rewriter
from rewriter.errors import InputError
from rewriter.passes import WindowAttention, parse_rules
from rewriter.program.onnx import OnnxProgram
from rewriter.rules import fuse

MODEL = """
    <ir_version: {version}, opset_import: ["" : 17]>
    defaults (float[n, 6, 4] x, float[4, 4] weight, float[4] bias, float[1] gate, float[6] mask,
              int64[2] lengths, int64[3] shape) => (float[n, 6, 4] y, float flat, int64[2] parts)
    <
        float[4, 4] weight = {{1., 0., 0., 2., 0., 1., 0., 0., 3., 0., 1., 0., 0., 0., 0., 1.}},
        float[4] bias = {{0., 0., 0., 0.}},
        float[1] gate = {{0.}},
        float[6] mask = {{0., 0., 0., 0., -1e30, -1e30}},
        int64[2] lengths = {{3, 4}},
        int64[3] shape = {{-1, 6, 4}},
        float[4] two = {{2., 2., 2., 2.}},
        int64[1] axes = {{0}}
    >
    {{
        projected = MatMul(x, weight)
        scaled = Mul(projected, two)
        q = Add(scaled, bias)
        turned = Transpose <perm = [0, 2, 1]> (q)
        scores = MatMul(q, turned)
        masked = Add(scores, mask)
        weights = Softmax <axis = -1> (masked)
        attended = MatMul(weights, x)
        same = Reshape(attended, shape)
        opened = Tanh(gate)
        branch = Mul(same, opened)
        y = Add(x, branch)
        total = Add(lengths, lengths)
        parts = Identity(total)
        flat = ReduceSum <keepdims = 0> (bias, axes)
    }}
"""

OTHERS = {
    "weight": np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32),
    "bias": np.asarray([1, -2, 3, 0.5], np.float32),
    "gate": np.asarray([0.7], np.float32),
    "mask": np.asarray([0, -1e30, 0, -1e30, 0, 1], np.float32),
    "lengths": np.asarray([5, 6]),
}


def _model(version: int) -> onnx.ModelProto:
    model = onnx.parser.parse_model(MODEL.format(version=version))
    if version < 4:  # there every initializer has to be an input
        given = {v.name for v in model.graph.input}
        for tensor in model.graph.initializer:
            if tensor.name not in given:
                model.graph.input.append(
                    onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                )
    onnx.checker.check_model(model)
    return model


def _run(model: bytes, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return list(session.run(None, feed))


def _x() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((2, 6, 4)).astype(np.float32)


def test_defaults_are_no_constants() -> None:
    graph = OnnxProgram(_model(8)).graph
    assert graph.inputs == ("x",)
    assert set(graph.held) == {"weight", "bias", "gate", "mask", "lengths", "shape"}
    assert set(graph.constants) == {"two", "axes"}
    np.testing.assert_array_equal(graph.held["gate"](), [0])
    old = OnnxProgram(_model(3)).graph
    assert old.inputs == ("x",) and not old.held and "gate" in old.constants


def test_sizes_are_not_inferred_from_defaults() -> None:
    assert not any(n.static for n in OnnxProgram(_model(8)).graph.values["same"].shape or ())
    assert [str(n) for n in OnnxProgram(_model(3)).graph.values["same"].shape or ()][1:] == ["6", "4"]


def test_inputs_with_a_default_may_be_given() -> None:
    model, x = _model(8), _x()
    program = OnnxProgram(model)
    for feed in ({}, OTHERS, {"gate": OTHERS["gate"]}):
        want = _run(model.SerializeToString(), {"x": x, **feed})
        for a, b in zip(program.run(x, **feed), want, strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(InputError, match=r"'two' is not an input of .*; its inputs are x, weight, bias"):
        program.run(x, two=np.ones(4, np.float32))
    with pytest.raises(InputError, match="is not an input"):
        OnnxProgram(_model(3)).run(x, gate=OTHERS["gate"])


def _exact(program: OnnxProgram) -> OnnxProgram:
    made, record = fuse(program, parse_rules("exact") or ())
    tidy, _ = made.tidied()
    assert not any(m.rule == "dead-branches" for m in record.matches)
    assert isinstance(tidy, OnnxProgram)
    return tidy


def _every_rule(program: OnnxProgram) -> OnnxProgram:
    from rewriter.passes import RULES

    rules = [rule for name in RULES for rule in parse_rules(name) or ()]
    made, _ = fuse(program, rules)
    assert isinstance(made, OnnxProgram)
    return made


def _windows(program: OnnxProgram) -> OnnxProgram:
    (site,) = program.sites
    assert site.formula.bias is not None
    made = WindowAttention(window=32)(program)
    assert isinstance(made, OnnxProgram) and made is not program
    return made


@pytest.mark.parametrize("apply", [_exact, _every_rule, _windows])
def test_rewritten_models_take_other_values(
    apply: Callable[[OnnxProgram], OnnxProgram], tmp_path: Path
) -> None:
    """A form whose window is longer than the sequence is exact."""
    model, x = _model(8), _x()
    made = apply(OnnxProgram(model))
    assert dict.fromkeys(made.graph.held) == dict.fromkeys(OnnxProgram(model).graph.held)
    made.save(tmp_path / "made.onnx")
    written = (tmp_path / "made.onnx").read_bytes()
    for feed in ({}, OTHERS, *({name: array} for name, array in OTHERS.items())):
        want = _run(model.SerializeToString(), {"x": x, **feed})
        for a, b in zip(want, _run(written, {"x": x, **feed}), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_old_models_have_constants(tmp_path: Path) -> None:
    """A gate of 0 closes its branch, and what is written says no less than before."""
    model, x = _model(3), _x()
    made, record = fuse(OnnxProgram(model), parse_rules("exact") or ())
    assert any(m.rule == "dead-branches" for m in record.committed)
    made.save(tmp_path / "made.onnx")
    onnx.checker.check_model(tmp_path / "made.onnx")
    for a, b in zip(_run(model.SerializeToString(), {"x": x}), made.run(x), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [v.name for v in onnxruntime.InferenceSession(tmp_path / "made.onnx").get_inputs()] == ["x"]


def test_validation_of_models_with_defaults() -> None:
    program = OnnxProgram(_model(8))
    report = rewriter.validate(program, _windows(program))
    assert report.ok
