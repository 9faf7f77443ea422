"""Feature maps on the real models: all sites are rewritten, files stay standard, no model stays itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import rewriter
from rewriter import models_zoo
from rewriter.engine import Pass
from rewriter.models_zoo.zoo_model import ZooModel
from rewriter.passes import FlowAttention, LinearAttention, ReassociatedAttention

Zoo = Callable[[str], ZooModel]

CASES: dict[str, tuple[str, Callable[[], Pass], int]] = {
    "relu on patches": ("dinov2-small", lambda: LinearAttention("relu"), 12),
    "softmax features on letters": ("ppocr-v4-rec", lambda: LinearAttention("softmax"), 2),
    "flows of letters": ("ppocr-v4-rec", FlowAttention, 2),
    "elu on padded words": ("minilm-l6-int8", lambda: LinearAttention("elu"), 6),
}
"""Model, pass, and sites that it is legal for."""


@pytest.mark.parametrize(
    ("name", "build", "sites"),
    [pytest.param(*case, id=key, marks=pytest.mark.xdist_group(case[0])) for key, case in CASES.items()],
)
def test_files_are_rewritten_and_stay_standard(
    zoo: Zoo, name: str, build: Callable[[], Pass], sites: int, tmp_path: Path
) -> None:
    model, step = zoo(name), build()
    assert isinstance(model.model, Path)
    new = step(rewriter.load(model.model))
    assert step.report is not None
    assert [s.reason for s in step.report.sites] == [None] * sites
    new.save(tmp_path / "new.onnx")
    onnx.checker.check_model(str(tmp_path / "new.onnx"), full_check=True)
    functions = onnx.load(tmp_path / "new.onnx").functions
    assert functions and {n.domain for f in functions for n in f.node} <= {"", "ai.onnx"}
    saved = replace(model, model=tmp_path / "new.onnx")
    before, after = (np.asarray(m.run(*m.inputs)[0], np.float64).ravel() for m in (model, saved))
    assert np.isfinite(after).all() and not np.allclose(before, after, rtol=1e-3)


def test_padded_words_do_not_flow(zoo: Zoo) -> None:
    model, step = zoo("minilm-l6-int8"), FlowAttention()
    assert isinstance(model.model, Path)
    p = rewriter.load(model.model)
    assert step(p) is p and step.report is not None
    assert all("masked or biased" in (s.reason or "") for s in step.report.sites)


@pytest.mark.xdist_group("byte-lm")
def test_a_language_model_stays_causal() -> None:
    model = models_zoo.load("byte-lm")
    p = rewriter.trace(model.model, model.inputs, dynamic_shapes=model.dynamic_shapes)  # type: ignore[arg-type]
    step = LinearAttention("elu")
    new = step(p)
    assert step.report is not None and all(s.committed for s in step.report.sites)
    (tokens,) = model.inputs
    later = tokens.clone()
    later[:, -1] = (later[:, -1] + 1) % 7
    first, second = (np.asarray(new.run(x)[0].detach()) for x in (tokens, later))
    np.testing.assert_allclose(first[:, :-1], second[:, :-1], rtol=1e-4, atol=1e-4)
    assert not np.allclose(first[:, -1], second[:, -1], atol=1e-3)
    exact = ReassociatedAttention()
    assert exact(p) is p and exact.report is not None
    assert all("is attention" in (s.reason or "") for s in exact.report.sites)
