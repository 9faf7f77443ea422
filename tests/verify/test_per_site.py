"""Errors site by site: who is to blame, whether a model says what was done to it or not."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import rewriter
from rewriter.engine import rewrite
from rewriter.program.fx import trace
from rewriter.program.program import Program
from rewriter.selectors import parse_apply
from rewriter.verify.inputs import Case, generated_cases
from rewriter.verify.lockstep import per_site
from tests.merging.vits import TOKENS, WIDTH, Vit
from tests.verify.twelve import FAULTS, HEADS, fx_layers, onnx_layers

MODELS: dict[str, Callable[..., Program]] = {"onnx": onnx_layers, "fx": fx_layers}


@cache
def _model(format_: str) -> Program:
    return MODELS[format_](3)


def _cases(program: Program, count: int = 2) -> list[Case]:
    return [c for c in generated_cases(program) if c.group == "random"][:count]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("formats", ["onnx onnx", "fx fx", "fx onnx", "onnx fx"])
def test_a_fault_in_a_model_without_notes_is_blamed_on_its_site(formats: str, fault: str) -> None:
    first, second = formats.split()
    original = _model(first)
    found = per_site(original, MODELS[second](3, 1, fault), _cases(original, 1), statistics=False)
    behind = fault in ("1e-3", "swapped heads", "output weights")
    # between sites other formats have other names: a fault behind a site may as well be before the next
    assert found.blamed == (
        ("attention.1", "attention.2") if behind and first != second else ("attention.1",)
    )


@pytest.mark.parametrize("format_", MODELS)
def test_one_site_of_twelve_that_is_off_by_a_thousandth_is_found(format_: str) -> None:
    original, faulty = MODELS[format_](12), MODELS[format_](12, 7, "1e-3")
    found = per_site(original, faulty, _cases(original, 1), statistics=False)
    assert found.blamed == ("attention.7",)


@pytest.mark.parametrize("formats", ["onnx onnx", "fx fx", "fx onnx", "onnx fx"])
def test_equal_models_of_any_format_are_not_blamed(formats: str) -> None:
    first, second = map(_model, formats.split())
    found = per_site(first, second, _cases(first), statistics=False)
    assert found.blamed == () and [s.ok for s in found.sites] == [True] * 3
    for record in found.sites:
        assert record.local is not None and record.local.distance.rel < 1e-6
        assert record.accumulated is not None and record.accumulated.distance.rel < 1e-5
        assert record.paired_by == ("name" if first.format == second.format else "order")


@pytest.mark.parametrize("format_", ["onnx", "fx"])
@pytest.mark.parametrize("form", ["softmax", "window:window=3"])
def test_a_rewritten_model_says_itself_what_was_done_and_is_held_to_it(
    format_: str, form: str, tmp_path: Path
) -> None:
    original = _model(format_)
    rewritten, _ = rewrite(original, [parse_apply(form)], verify=False)
    path = tmp_path / f"model.{'onnx' if format_ == 'onnx' else 'pt2'}"
    rewritten.save(path)
    found = per_site(original, rewriter.load(path), _cases(original))
    assert found.blamed == ()
    for record in found.sites:
        assert record.form is not None and record.form.startswith(form)
        assert record.paired_by == "notes" and record.ok is True
        assert record.local is not None and len(record.local.heads) == HEADS
        assert (record.local.distance.rel > 0.1) == form.startswith("window")
        assert record.before is not None and record.after is not None
        assert (record.after.entropy[0] < record.before.entropy[0] - 0.1) == form.startswith("window")
    assert [s.ok for s in found.stretches] == [True] * 4


def test_a_fault_in_an_approximation_is_told_from_the_approximation() -> None:
    original, faulty = onnx_layers(3), onnx_layers(3, 1, "mask corner")
    right, _ = rewrite(original, [parse_apply("window:window=3")], verify=False)
    assert per_site(original, right, _cases(original), statistics=False).blamed == ()
    wrong, _ = rewrite(original, [parse_apply("window:window=5")], verify=False)
    lying = _with_notes(wrong, right)
    assert set(per_site(original, lying, _cases(original), statistics=False).blamed) == {
        "attention.0",
        "attention.1",
        "attention.2",
    }
    assert per_site(original, faulty, _cases(original), statistics=False).blamed == ("attention.1",)


def _with_notes(program: Program, other: Program) -> Program:
    from rewriter.program.onnx import OnnxProgram

    assert isinstance(program, OnnxProgram)
    model = program.model.clone()
    model.metadata_props.update(other.metadata)
    return OnnxProgram(model, "lying")


def test_only_the_swapped_heads_are_wrong() -> None:
    from rewriter.verify.per_site import SiteError

    original = fx_layers(3)
    found = per_site(original, fx_layers(3, 2, "query weights"), _cases(original), statistics=False)
    errors = found.sites[2].accumulated
    assert isinstance(errors, SiteError) and min(errors.heads) > 0.1
    assert max(found.sites[2].operands.values()) == found.sites[2].operands["q"] > 0.1
    assert found.sites[2].operands["k"] == 0 and found.sites[2].local is not None
    assert found.sites[2].local.distance.max_abs == 0
    wrong = next(s for s in found.stretches if s.ok is False)
    assert (wrong.after, wrong.before, wrong.near) == ("attention.1", "attention.2", "attention.2")


def test_statistics_are_those_of_the_weights_as_the_models_run() -> None:
    original = onnx_layers(1)
    found = per_site(original, onnx_layers(1, 0, "scale"), _cases(original, 1))
    (site,) = found.sites
    assert site.before is not None and site.after is not None
    assert all(after < before for before, after in zip(site.before.entropy, site.after.entropy, strict=True))
    (picture,) = site.maps
    np.testing.assert_allclose(picture.before.sum(axis=1), 1, rtol=1e-5)
    assert picture.before.shape == (9, 9) and np.abs(picture.before - picture.after).max() > 0.01


def test_merged_tokens_are_noted_and_do_not_break_the_comparison() -> None:
    original = trace(Vit().eval(), (torch.randn(1, TOKENS - 1, WIDTH),))
    rewritten, _ = rewrite(original, [parse_apply("merge:r=8,through=true@0")], verify=False)
    found = per_site(original, rewritten, _cases(original, 1), statistics=False)
    assert found.sites[0].form is not None and found.sites[0].ok is None
    assert any(s.note is not None for s in found.sites[1:])


def test_the_same_comparison_gives_the_same_record() -> None:
    original, other = fx_layers(2), fx_layers(2, 1, "1e-3")
    first, second = (per_site(original, other, _cases(original)).to_dict() for _ in range(2))
    assert first == second


def test_inputs_that_cannot_be_run_are_an_error() -> None:
    original = fx_layers(1)
    with pytest.raises(rewriter.InputError, match="cannot be compared site by site"):
        per_site(original, original, [])
