"""Clipped and gated attention on the real models, as files and as modules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import rewriter
from rewriter import models_zoo
from rewriter.kernels.clipped.form import Clipped
from rewriter.models_zoo.zoo_model import ZooModel
from rewriter.passes import ClippedAttention, GatedAttention
from rewriter.program.program import Program
from rewriter.verify.distance import distance

Zoo = Callable[[str], ZooModel]

FILES = {"dinov2-small": 12, "minilm-l6-int8": 6, "ppocr-v4-rec": 2}
MODULES = {"smollm2-135m": 2, "minilm-l6": 6, "byte-lm": 4}


def program(name: str) -> Program:
    model = models_zoo.load(name)
    if isinstance(model.model, Path):
        return rewriter.load(model.model)
    return rewriter.trace(model.model, model.inputs, dynamic_shapes=model.dynamic_shapes)


def changed(model: ZooModel, new: Program) -> float:
    """Return ``1 - cosine`` of the first output."""
    before, after = (np.asarray(run(*model.inputs)[0]) for run in (model.run, new.run))
    return 1 - distance(before, after).cos


@pytest.mark.parametrize("name", [*FILES, *MODULES])
def test_every_attention_is_clipped_a_little(zoo: Zoo, name: str, tmp_path: Path) -> None:
    model = zoo(name)
    few = "0-1" if name == "smollm2-135m" else "all"
    step = ClippedAttention(gamma=-0.0003, select=few, data=[model.inputs])
    new = step(program(name))
    assert step.report is not None and [s.reason for s in step.report.refused] == []
    assert len(step.report.committed) == {**FILES, **MODULES}[name]
    assert all(s.error is not None and 0 < s.error < 0.2 for s in step.report.sites)
    assert 0 < changed(model, new) < 0.02
    if name in FILES:
        new.save(tmp_path / "new.onnx")
        opsets = {o.domain for o in onnx.load(tmp_path / "new.onnx", load_external_data=False).opset_import}
        assert not any(domain.startswith(("com.microsoft", "ai.onnx.contrib")) for domain in opsets)
        session = ort.InferenceSession(tmp_path / "new.onnx")
        inputs = {i.name: np.asarray(x) for i, x in zip(session.get_inputs(), model.inputs, strict=True)}
        np.testing.assert_allclose(
            session.run(None, inputs)[0], new.run(*model.inputs)[0], rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("name", ["dinov2-small", "minilm-l6-int8", "byte-lm"])
def test_gates_scale_every_attention(zoo: Zoo, name: str) -> None:
    model = zoo(name)
    for bias, most in ((20.0, 1e-6), (4.0, 0.01)):
        step = GatedAttention(bias=bias)
        new = step(program(name))
        assert step.report is not None and [s.reason for s in step.report.refused] == []
        assert changed(model, new) < most
        expected = 1 - 1 / (1 + np.exp(-bias))
        assert all(s.error == pytest.approx(expected, rel=0.05, abs=1e-6) for s in step.report.sites)


def test_gamma_is_chosen_for_each_layer(zoo: Zoo) -> None:
    from rewriter.models_zoo.dinov2 import photograph

    model, p = zoo("dinov2-small"), program("dinov2-small")
    step = ClippedAttention(error=0.02, data=[{p.graph.inputs[0]: photograph("china.jpg")}])
    new = step(p)
    assert step.report is not None and len(step.report.committed) == 12
    assert all(s.error is not None and s.error <= 0.02 for s in step.report.sites)
    forms = [s.form for s in step.report.plan.steps]
    assert len({form.gamma for form in forms if isinstance(form, Clipped)}) > 1
    assert changed(model, new) < 0.01
