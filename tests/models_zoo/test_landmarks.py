"""Agents and landmarks on the real models: all legal sites are rewritten, and files stay standard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import rewriter
from rewriter import models_zoo
from rewriter.models_zoo.zoo_model import ZooModel
from rewriter.passes import AgentAttention, NystromAttention
from rewriter.program.program import Program

Zoo = Callable[[str], ZooModel]
Rewrite = Callable[[], AgentAttention | NystromAttention]

CASES: dict[str, tuple[str, Rewrite, int, float]] = {
    "agents on patches": ("dinov2-small", lambda: AgentAttention(49, 1, "auto"), 12, 0.99),
    "landmarks on patches": ("dinov2-small", lambda: NystromAttention(100, 1, "auto"), 12, 0.99),
    "agents on letters": ("ppocr-v4-rec", lambda: AgentAttention(8), 2, 0.98),
    "landmarks on letters": ("ppocr-v4-rec", lambda: NystromAttention(8), 2, 0.98),
    "agents on padded words": ("minilm-l6-int8", lambda: AgentAttention(8), 6, 0.88),
    "landmarks on padded words": ("minilm-l6-int8", lambda: NystromAttention(8, pool="mean"), 6, 0.88),
}
"""Model, pass, sites that it is legal for, and the least cosine of the outputs on the model's own inputs."""


def _program(model: ZooModel) -> Program:
    if isinstance(model.model, Path):
        return rewriter.load(model.model)
    return rewriter.trace(model.model, model.inputs, dynamic_shapes=model.dynamic_shapes)


@pytest.mark.parametrize(
    ("name", "build", "sites", "least"),
    [pytest.param(*case, id=key, marks=pytest.mark.xdist_group(case[0])) for key, case in CASES.items()],
)
def test_files_are_rewritten_and_stay_standard(
    zoo: Zoo, name: str, build: Rewrite, sites: int, least: float, tmp_path: Path
) -> None:
    model, step = zoo(name), build()
    new = step(_program(model))
    assert step.report is not None
    assert [s.reason for s in step.report.sites] == [None] * sites
    new.save(tmp_path / "new.onnx")
    onnx.checker.check_model(str(tmp_path / "new.onnx"), full_check=True)
    functions = onnx.load(tmp_path / "new.onnx").functions
    assert functions and {n.domain for f in functions for n in f.node} <= {"", "ai.onnx"}
    saved = replace(model, model=tmp_path / "new.onnx")
    before, after = (np.asarray(m.run(*m.inputs)[0], np.float64).ravel() for m in (model, saved))
    assert least < before @ after / np.linalg.norm(before) / np.linalg.norm(after) < 1 - 1e-6


@pytest.mark.xdist_group("byte-lm")
def test_a_language_model_is_left_as_it_is() -> None:
    p = _program(models_zoo.load("byte-lm"))
    for step in (AgentAttention(8), NystromAttention(8)):
        assert step(p) is p
        assert step.report is not None
        assert all("causal or windowed" in (s.reason or "") for s in step.report.sites)
