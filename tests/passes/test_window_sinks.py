"""First tokens that a model rests on are found by measurement, through both kinds of graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import rewriter
from rewriter.kernels.window.form import Window
from rewriter.passes import WindowAttention
from rewriter.plan import Plan

WIDTH = 8


class Resting(nn.Module):
    """Attention whose queries all agree with the features of the tokens that it rests on."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.value = nn.Linear(WIDTH, WIDTH)
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        scores = 0.25 * (x + 1.0) @ x.transpose(1, 2)
        if self.causal:
            seen = torch.arange(n)[None] <= torch.arange(n)[:, None]
            scores = scores.masked_fill(~seen, -torch.inf)
        result: Tensor = scores.softmax(-1) @ self.value(x)
        return result


def tokens(length: int, resting: int) -> np.ndarray:
    """Return noise; the first so many tokens draw every query, and differ in what does not matter to it."""
    rng = np.random.default_rng(0)
    x = 0.1 * rng.normal(size=(1, length, WIDTH))
    apart = rng.normal(size=(resting, WIDTH))
    x[:, :resting] = 4.0 * (1.0 + apart - apart.mean(-1, keepdims=True))
    return x.astype(np.float32)


def program(kind: str, causal: bool, where: Path) -> rewriter.Program:
    torch.manual_seed(0)
    module, x = Resting(causal).eval(), torch.from_numpy(tokens(90, 7))
    traced = rewriter.trace(module, (x,), dynamic_shapes=({1: Dim("n", min=2)},))
    if kind == "fx":
        return traced
    path = where / "m.onnx"
    torch.onnx.export(
        module, (x,), path, dynamo=True, input_names=["x"], dynamic_shapes=({1: Dim("n", min=2)},)
    )
    return rewriter.load(path)


def sinks(step: WindowAttention) -> int | str:
    assert step.report is not None
    (found,) = step.report.plan.steps
    assert isinstance(found.form, Window)
    return found.form.sinks


@pytest.mark.parametrize("kind", ["fx", "onnx"])
@pytest.mark.parametrize(("causal", "resting", "wanted"), [(True, 7, 8), (True, 1, 4), (False, 2, 2)])
def test_they_are_found(kind: str, causal: bool, resting: int, wanted: int, tmp_path: Path) -> None:
    p, x = program(kind, causal, tmp_path), tokens(90, resting)
    name = p.graph.inputs[0]
    step = WindowAttention(9, data=[{name: x}])
    new = step(p)
    assert sinks(step) == wanted
    assert step.report is not None
    again, _ = rewriter.rewrite(p, Plan.from_json(step.report.plan.to_json()))  # needs no data
    np.testing.assert_array_equal(np.asarray(again.run(x)[0]), np.asarray(new.run(x)[0]))


def test_data_that_is_no_longer_than_the_window_tells_nothing(tmp_path: Path) -> None:
    p = program("fx", True, tmp_path)
    for data in (None, [{p.graph.inputs[0]: tokens(9, 7)}]):
        step = WindowAttention(9, data=data)
        step(p)
        assert sinks(step) == 4
