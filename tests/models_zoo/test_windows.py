"""Windows and averages on the real models: what is asked for is what is verified and written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import rewriter
from rewriter.engine import Pass
from rewriter.models_zoo.dinov2 import photograph
from rewriter.models_zoo.zoo_model import ZooModel
from rewriter.passes import parse_form

Zoo = Callable[[str], ZooModel]

IMAGES = {
    "pooled:window=8,pool=2,grid=auto": "pooled:window=8,pool=2,sinks=1,grid=16x16",
    "window:window=7,grid=auto,borders=shift": "window:window=7,sinks=1,grid=16x16,borders=shift",
    "window:window=4,grid=auto,stride=4,offset=2": "window:window=4,sinks=1,grid=16x16,stride=4,offset=2",
    "window:window=5,grid=auto,dilation=2": "window:window=5,sinks=1,grid=16x16,dilation=2",
}


@pytest.mark.xdist_group("dinov2-small")
@pytest.mark.parametrize(("text", "resolved"), IMAGES.items(), ids=list(IMAGES))
def test_an_image_model_gets_its_own_grid(zoo: Zoo, text: str, resolved: str, tmp_path: Path) -> None:
    path = zoo("dinov2-small").model
    assert isinstance(path, Path)
    step = Pass(parse_form(text), "3")
    new = step(rewriter.load(path))
    assert step.report is not None
    (applied,) = step.report.sites
    assert applied.reason is None and applied.form == resolved
    tiled = "shift" not in text  # at 256 places those windows are one call with a mask
    assert (applied.before.flops - applied.after.flops).at_least(int(tiled))
    (tmp_path / "out").mkdir()
    new.save(tmp_path / "out" / "new.onnx")
    saved = onnx.load(tmp_path / "out" / "new.onnx", load_external_data=False)
    own = {f.domain for f in saved.functions}
    assert {n.domain for n in saved.graph.node} <= {"", *own}
    x = photograph("china.jpg")
    (before,), (after,) = zoo("dinov2-small").run(x), rewriter.load(tmp_path / "out" / "new.onnx").run(x)
    alike = float((before * after).sum() / np.linalg.norm(before) / np.linalg.norm(after))
    assert 0.97 < alike < 1.0


@pytest.mark.xdist_group("minilm-l6-int8")
def test_a_text_encoder_of_any_length_gets_averages(zoo: Zoo) -> None:
    path = zoo("minilm-l6-int8").model
    assert isinstance(path, Path)
    step = Pass(parse_form("pooled:window=32,pool=4,sinks=1"), "2")
    step(rewriter.load(path))
    assert step.report is not None
    assert [s.reason for s in step.report.sites] == [None]
    (done,) = step.report.committed
    assert done.check is not None and done.check.probes > 1 and 0 < (done.error or 0) < 1
