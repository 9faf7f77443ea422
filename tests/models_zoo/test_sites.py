"""The real models: every attention is found, nothing else is, and rewriting all of them is exact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from _pytest.mark import ParameterSet

import rewriter
from rewriter import models_zoo
from rewriter.models_zoo.zoo_model import ZooModel
from rewriter.passes import SoftmaxAttention, WindowAttention
from rewriter.program.program import Program

Zoo = Callable[[str], ZooModel]

SITES: dict[str, Counter[tuple[str, int, int]]] = {
    "byte-lm": Counter({("causal", 6, 2): 4}),
    "digits-vit": Counter({("none", 4, 4): 4}),
    "dinov2-small": Counter({("none", 6, 6): 12}),
    "dinov2-small-torch": Counter({("none", 6, 6): 12}),
    "minilm-l6": Counter({("padding", 12, 12): 6}),
    "minilm-l6-int8": Counter({("padding", 12, 12): 6}),
    "ppocr-v4-cls": Counter(),
    "ppocr-v4-det": Counter(),
    "ppocr-v4-rec": Counter({("none", 8, 8): 2}),
    "smollm2-135m": Counter({("causal", 9, 3): 30}),
    "whisper-base": Counter({("none", 8, 8): 12, ("causal", 8, 8): 6}),
}
"""Attentions by what is proved of their mask, query heads and key/value heads."""


def _grouped(*names: str) -> list[ParameterSet]:
    return [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in names]


@cache
def _program(name: str) -> Program:
    model = models_zoo.load(name)
    if isinstance(model.model, Path):
        return rewriter.load(model.model)
    return rewriter.trace(model.model, model.inputs, dynamic_shapes=model.dynamic_shapes)


def test_every_model_has_an_expectation() -> None:
    assert tuple(SITES) == models_zoo.names()


@pytest.mark.parametrize("name", _grouped(*SITES))
def test_every_attention_is_found_and_nothing_else(zoo: Zoo, name: str) -> None:
    zoo(name)
    sites = _program(name).sites
    assert Counter((s.facts.mask, int(s.heads), int(s.kv_heads)) for s in sites) == SITES[name]
    assert [s.id for s in sites] == [f"attention.{k}" for k in range(len(sites))]


@pytest.mark.xdist_group("ppocr-v4-rec")
def test_the_softmax_of_a_class_head_is_refused_with_the_reason(zoo: Zoo) -> None:
    zoo("ppocr-v4-rec")
    (refusal,) = _program("ppocr-v4-rec").refused
    assert "6625 entries" in refusal.reason
    assert "not followed by a sum with values" in refusal.reason


@pytest.mark.parametrize("name", _grouped(*(n for n, sites in SITES.items() if sites)))
def test_exact_form_commits_everywhere_and_keeps_the_outputs(zoo: Zoo, name: str) -> None:
    model, program = zoo(name), _program(name)
    attention = SoftmaxAttention()
    new = attention(program)
    assert attention.report is not None
    assert attention.report.exact
    assert not attention.report.refused
    assert len(attention.report.committed) == len(program.sites) == len(new.sites)
    for before, after in zip(model.run(*model.inputs), new.run(*model.inputs), strict=True):
        old, fresh = np.asarray(before), np.asarray(after)
        assert np.abs(fresh - old).max() < 1e-4 * max(1.0, np.abs(old).max())


@pytest.mark.parametrize(
    "name", _grouped("byte-lm", "digits-vit", "minilm-l6", "minilm-l6-int8", "ppocr-v4-rec")
)
def test_exact_rewrite_is_within_the_derived_tolerance(zoo: Zoo, name: str) -> None:
    zoo(name)
    program = _program(name)
    report = rewriter.validate(program, SoftmaxAttention()(program))
    assert report.ok, report.to_json()


@pytest.mark.parametrize("name", _grouped("dinov2-small", "minilm-l6-int8", "ppocr-v4-rec"))
def test_saved_file_is_standard_and_does_the_same_task(zoo: Zoo, name: str, tmp_path: Path) -> None:
    import onnx

    model, program = zoo(name), _program(name)
    SoftmaxAttention()(program).save(tmp_path / "rewritten.onnx")
    onnx.checker.check_model(str(tmp_path / "rewritten.onnx"), full_check=True)
    saved = replace(model, model=tmp_path / "rewritten.onnx")
    before, after = model.measure(model.run), saved.measure(saved.run)
    assert after == pytest.approx(before, abs=1e-4)


@pytest.mark.xdist_group("byte-lm")
def test_a_window_as_long_as_the_text_changes_nothing_and_a_short_one_does() -> None:
    from rewriter.models_zoo.byte_lm import bits_per_byte
    from rewriter.models_zoo.trained import _AsModule

    program = _program("byte-lm")
    quality = [
        bits_per_byte(_AsModule(p.run), 512, limit=4)
        for p in (program, *(WindowAttention(window=w, sinks=0)(program) for w in (512, 8)))
    ]
    assert quality[1] == pytest.approx(quality[0], abs=1e-5)
    assert quality[2] > quality[0] + 0.05
