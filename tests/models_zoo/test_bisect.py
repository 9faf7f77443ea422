"""Which sites to revert in models that were trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import rewriter
from rewriter.engine import Pass
from rewriter.models_zoo.dinov2 import photograph
from rewriter.models_zoo.zoo_model import ZooModel
from rewriter.passes import parse_form
from rewriter.verify.bisect import bisect
from rewriter.verify.inputs import Case
from rewriter.verify.lockstep import per_site

Zoo = Callable[[str], ZooModel]

HELD_OUT = Path(rewriter.__file__).parent / "models_zoo" / "data" / "held_out.txt"


@pytest.mark.xdist_group("dinov2-small")
def test_one_weight_of_a_vision_model_in_onnx_is_blamed_on_its_layer(zoo: Zoo, tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    path = zoo("dinov2-small").model
    assert isinstance(path, Path)
    edited = onnx.load(path)
    value = "/backbone/encoder/layer.7/attention/attention/query/MatMul"
    weight = next(n.input[1] for n in edited.graph.node if n.name == value)
    held = next(t for t in edited.graph.initializer if t.name == weight)
    held.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(held), 64, axis=1), weight))
    onnx.save(edited, tmp_path / "edited.onnx")
    original, other = rewriter.load(path), rewriter.load(tmp_path / "edited.onnx")
    case = Case("flower", "data", {original.graph.inputs[0]: photograph("flower.jpg")})
    found = per_site(original, other, [case])
    assert found.blamed == ("attention.7",) and len(found.sites) == 12
    assert found.sites[7].operands["q"] > 0.1 > found.sites[6].operands["q"]


@pytest.mark.xdist_group("byte-lm")
def test_the_sites_of_a_language_model_that_a_window_harms(zoo: Zoo) -> None:
    from rewriter.cli.models import open_model

    original = open_model("zoo:byte-lm")
    narrow = Pass(parse_form("window:window=16,sinks=0"))(original)
    data = f"text:{HELD_OUT}:tokenizer=bytes,length=512,limit=8"
    found = bisect(original, narrow, data, "kl<=0.02")
    assert found.blamed == ("attention.0",) and found.guarantee == "smallest"
