"""Validation of the real models on real inputs, prepared as they were trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rewriter
from rewriter.engine import Pass
from rewriter.models_zoo.dinov2 import photograph
from rewriter.models_zoo.package import MINILM, locate
from rewriter.models_zoo.zoo_model import ZooModel
from rewriter.passes import WindowAttention, parse_form
from rewriter.verify.budget import parse_budget
from rewriter.verify.data import data_cases

Zoo = Callable[[str], ZooModel]

NORMAL = "mean=0.485/0.456/0.406,std=0.229/0.224/0.225"
HELD_OUT = Path(rewriter.__file__).parent / "models_zoo" / "data" / "held_out.txt"


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Write the middle squares of scikit-learn's two photographs into a folder."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    for name in ("china", "flower"):
        pixels = load_sample_image(f"{name}.jpg")
        left = (pixels.shape[1] - len(pixels)) // 2
        Image.fromarray(pixels[:, left : left + len(pixels)]).save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.mark.xdist_group("dinov2-small")
def test_a_windowed_vision_model_on_photographs(zoo: Zoo, photographs: Path) -> None:
    path = zoo("dinov2-small").model
    assert isinstance(path, Path)
    original, data = rewriter.load(path), f"images:{photographs}:{NORMAL}"
    china, flower = (case.inputs for case in data_cases(data, original))
    for given, name in ((china, "china.jpg"), (flower, "flower.jpg")):
        (array,) = given.values()
        np.testing.assert_allclose(array, photograph(name), atol=1e-5)
    narrow = Pass(parse_form("window:window=5,sinks=1,grid=auto"), "3")(original)
    report = rewriter.validate(original, narrow, data=data, budget=["cos>=0.9", "soft_iou>=0.5"])
    (output,) = report.summary["data"]
    assert report.ok and output.distance is not None and output.noise is not None
    assert output.distance.cos < 0.99999 < output.noise.cos
    assert output.distance.soft_iou < 0.999 < output.noise.soft_iou
    assert not parse_budget("cos>=0.99999").check({"map": output.distance}).ok


@pytest.mark.xdist_group("smollm2-135m")
def test_text_is_cut_into_the_tokens_of_a_decoder(zoo: Zoo) -> None:
    from rewriter.models_zoo.smollm2 import token_ids

    found = zoo("smollm2-135m")
    original: Any = rewriter.trace(found.model, found.inputs, dynamic_shapes=found.dynamic_shapes)  # type: ignore[arg-type]
    data = f"text:{HELD_OUT}:tokenizer=rewriter.models_zoo.smollm2:tokenizer,length=48,limit=2"
    first, second = (next(iter(case.inputs.values())) for case in data_cases(data, original))
    assert first.shape == second.shape == (1, 48)
    np.testing.assert_array_equal(np.concatenate([first, second], 1), token_ids(96))
    windowed = Pass(parse_form("window:window=8,sinks=1"), "0")(original)
    report = rewriter.validate(original, windowed, data=data, budget=["kl<=1e-9"])
    (output,) = report.summary["data"]
    assert not report.ok and output.distance is not None and output.noise is not None
    assert output.noise.kl < 1e-9 < 1e-5 < output.distance.kl
    assert output.distance.top1 <= output.noise.top1


@pytest.mark.xdist_group("ppocr-v4-rec")
def test_a_reader_is_judged_by_what_it_reads(zoo: Zoo) -> None:
    from rewriter.models_zoo.ppocr import line

    found = zoo("ppocr-v4-rec")
    assert isinstance(found.model, Path)
    original = rewriter.load(found.model)
    words = [(line(text),) for text in ("algebra", "proof 12 of 12")]
    windowed = WindowAttention(window=64)(original)
    report = rewriter.validate(
        original, windowed, data=words, tasks=["zoo:ppocr-v4-rec"], budget="task.text_similarity>=0.9"
    )
    (task,) = report.tasks
    assert report.ok and task.original > 0.95 and task.rewritten >= 0.9
    blind = WindowAttention(window=1)(original)
    worse = rewriter.validate(
        original,
        blind,
        data=words,
        tasks=[found.measure],
        budget=["task.text_similarity.change>=0", "top1>=1"],
    )
    assert not worse.ok and worse.tasks[0].original == task.original and worse.tasks[0].rewritten <= 1


@pytest.mark.xdist_group("minilm-l6-int8")
def test_padding_of_a_text_encoder_does_not_count(zoo: Zoo) -> None:
    path = zoo("minilm-l6-int8").model
    assert isinstance(path, Path)
    original = rewriter.load(path)
    tokenizer = locate(MINILM, "minilm-l6") / "model"
    data = f"text:{HELD_OUT}:tokenizer={tokenizer},split=lines,batch=4,limit=8,length=64"
    with_padding = rewriter.validate(original, original, data=data)
    without = rewriter.validate(original, original, data=data, mask="attention_mask")
    assert with_padding.ok and without.ok
    (counted,), (all_of_it,) = without.summary["data"], with_padding.summary["data"]
    assert counted.distance is not None and all_of_it.distance is not None
    assert 0 < counted.distance.elements < all_of_it.distance.elements
    assert any("hidden by attention_mask, count;" in note for note in with_padding.notes)
    assert any("do not count" in note for note in without.notes)
