from __future__ import annotations

import io
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import rewriter
from rewriter.engine import rewrite
from rewriter.errors import InputError
from rewriter.forms import Canonical, Fidelity
from rewriter.kernels.linear.form import Linear
from rewriter.kernels.softmax.form import Softmax
from rewriter.kernels.window.form import Window
from rewriter.lower.emitter import Emitter, Handle
from rewriter.lower.errors import EmitError
from rewriter.passes import Sequential, SoftmaxAttention, WindowAttention
from rewriter.plan import Plan
from rewriter.program.onnx import OnnxProgram
from rewriter.report.rewriting import rewriting_view
from rewriter.selectors import Selector, parse_apply
from rewriter.sites.site import AttentionSite
from rewriter.verify.activations import recorded
from rewriter.verify.metrics import relative
from rewriter.verify.reference import Reference
from tests.program.onnx_models import attention_inputs, attention_layers


def program(layers: int = 3, masked: bool = False, **options: Any) -> OnnxProgram:
    return OnnxProgram(attention_layers(layers=layers, masked=masked, **options), "model.onnx")


@dataclass(frozen=True)
class Scaled(Softmax):
    """Claims to be exact and is off by a thousandth."""

    def emit(self, e: Emitter, a: Canonical) -> Handle:
        return super().emit(e, replace(a, scale=a.scale * 1.001))


@dataclass(frozen=True)
class Narrower(Window):
    """Says one window and computes another."""

    def emit(self, e: Emitter, a: Canonical) -> Handle:
        return Window(int(self.window) - 2).emit(e, a)


@dataclass(frozen=True)
class Louder(Linear):
    """Computes a thousandth more than it says."""

    def emit(self, e: Emitter, a: Canonical) -> Handle:
        return e.map("mul", super().emit(e, a), e.constant(1.001, e.dtype(a.q)))


@dataclass(frozen=True)
class Impossible(Softmax):
    """Nothing can be emitted."""

    def emit(self, e: Emitter, a: Canonical) -> Handle:
        raise EmitError("there is no operator for it")


@dataclass(frozen=True)
class Bumpy(Softmax):
    """Exact where it is applied; not legal at the second site."""

    def why_not(self, site: AttentionSite) -> str | None:
        return "not here" if site.id == "attention.1" else None


def test_every_site_is_committed_and_the_model_stays_the_same() -> None:
    p = program(masked=True)
    inputs = attention_inputs()
    before = p.run(*inputs)
    new, done = rewrite(p, [(Softmax(), Selector())])
    assert [s.site for s in done.committed] == ["attention.0", "attention.1", "attention.2"]
    assert done.exact and not done.refused
    np.testing.assert_allclose(new.run(*inputs)[0], before[0], rtol=1e-5, atol=1e-6)
    assert all(np.array_equal(x, y) for x, y in zip(p.run(*inputs), before, strict=True))
    assert len(p.sites) == 3
    for applied in done.sites:
        assert applied.check is not None and applied.check.error <= applied.check.tolerance
        assert applied.to_dict()["fidelity"] == "exact"


def test_equal_sites_are_probed_in_full_once() -> None:
    _, done = rewrite(program(), [(Softmax(), Selector())])
    probes = [s.check.probes for s in done.sites if s.check is not None]
    assert probes[0] > 5 and probes[1:] == [1, 1]


@pytest.mark.parametrize("form", [Scaled(), Narrower(5)], ids=["off by a little", "another window"])
def test_a_wrong_form_is_left_out_with_the_numbers(form: Softmax | Window) -> None:
    p = program()
    new, done = rewrite(p, [(form, Selector("1", numbers=(range(1, 2),)))])
    assert new is p and not done.committed and not done.plan.steps
    assert "against float64 is over" in (done.refused[0].reason or "")


@pytest.mark.parametrize("feature_map", ["fastmax1", "taylor1"])
def test_sums_that_nearly_cancel_may_round_as_their_last_bits_decide(feature_map: str) -> None:
    """Weights of these maps may be negative, so that a divisor may be next to 0."""

    class Attention(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    few = rewriter.trace(Attention(), tuple(torch.randn(1, 2, 9, 8) for _ in range(3)))
    for seed in range(6):
        for form, fits in ((Linear(feature_map), True), (Louder(feature_map), False)):
            _, report = rewrite(few, [(form, Selector.parse("all"))], seed=seed)
            assert report.sites[0].committed is fits, report.sites[0].reason


def test_what_cannot_be_emitted_is_refused_and_the_rest_goes_on() -> None:
    p = program()
    steps = [
        (Impossible(), Selector("0", numbers=(range(1),))),
        (Bumpy(), Selector("1-2", numbers=(range(1, 3),))),
    ]
    _, done = rewrite(p, steps)
    reasons = {s.site: s.reason for s in done.sites}
    assert reasons["attention.0"] == "softmax cannot be written for this target: there is no operator for it"
    assert reasons["attention.1"] == "not here"
    assert [s.site for s in done.committed] == ["attention.2"]


def test_the_last_step_that_names_a_site_counts() -> None:
    _, done = rewrite(program(), [parse_apply("softmax"), parse_apply("window:window=9@1")], verify=False)
    assert [s.form for s in done.sites] == ["softmax", "window:window=9,sinks=0", "softmax"]
    assert not done.exact


def test_without_verification_no_probe_runs() -> None:
    _, done = rewrite(program(), [(Softmax(), Selector())], verify=False)
    assert all(s.committed and s.check is None and s.error is None for s in done.sites)


def test_a_plan_is_replayed_to_the_same_bytes(tmp_path: Path) -> None:
    new, done = rewrite(program(), [parse_apply("window:window=5,sinks=1@0-1")])
    new.save(tmp_path / "a.onnx")
    plan = Plan.from_json(done.plan.to_json())
    again, redone = rewrite(program(), plan)
    again.save(tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert [s.site for s in redone.committed] == ["attention.0", "attention.1"]


def data(tmp_path: Path, length: int = 40) -> str:
    rng = np.random.default_rng(5)
    for name in "ab":
        np.savez(tmp_path / f"{name}.npz", x=rng.normal(size=(1, length, 32)).astype(np.float32))
    return str(tmp_path)


def test_errors_are_measured_on_data(tmp_path: Path) -> None:
    p, form, where = program(), Window(9, 1), data(tmp_path)
    _, done = rewrite(p, [(form, Selector())], data=where)
    for site, applied in zip(p.sites, done.sites, strict=True):
        errors = []
        for arrays in recorded(p, p.sites, where):
            found = Reference(p, site, {n: arrays[n] for n in site.inputs}).form_value(form)
            errors.append(relative(arrays[site.output].ravel(), found))
        assert applied.measured_on == "data" and applied.error is not None
        assert math.isclose(applied.error, math.sqrt(np.mean(np.square(errors))), rel_tol=1e-4)


def test_best_takes_the_sites_with_the_smallest_errors(tmp_path: Path) -> None:
    where = data(tmp_path)
    _, all_of_them = rewrite(program(), [(Window(9, 1), Selector())], data=where)
    _, best = rewrite(program(), [(Window(9, 1), Selector("best=0.67", best=0.67))], data=where)
    ranked = sorted(all_of_them.sites, key=lambda s: s.error or 0.0)
    assert {s.site for s in best.sites} == {s.site for s in ranked[:2]}


def test_without_data_a_long_enough_input_is_made() -> None:
    _, done = rewrite(program(layers=2), [(Window(9), Selector("best=0.5", best=0.5))])
    (applied,) = done.sites
    assert applied.measured_on == "generated input" and (applied.error or 0) > 0.01
    assert applied.fidelity is Fidelity.TRAINING_FREE


def test_best_of_sites_that_all_refuse_tells_why() -> None:
    p = program()
    new, done = rewrite(p, [(Window(3, 0, "auto"), Selector("best=0.5", best=0.5))])
    assert new is p and all("fix the input size" in (s.reason or "") for s in done.refused)
    assert len(done.refused) == 3


def test_a_wrong_selector_is_an_error() -> None:
    with pytest.raises(InputError, match="no site 7"):
        rewrite(program(), [parse_apply("softmax@7")])


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    rewrite(program(), [(Softmax(), Selector())], progress=lambda *step: told.append(step))
    assert ("verifying sites", 0, 3) in told and told[-1] == ("verifying sites", 3, 3)


def test_inline_and_target_reach_the_graph() -> None:
    new, done = rewrite(program(), [(Softmax(), Selector())], inline=True)
    plain, _ = rewrite(program(), [(Softmax(), Selector())])
    assert isinstance(new, OnnxProgram) and isinstance(plain, OnnxProgram)
    assert len(new.model.functions) < len(plain.model.functions)
    fused, done = rewrite(program(kv_heads=4), [(Softmax(), Selector())], target="ort", inline=True)
    assert any(node.op.endswith("MultiHeadAttention") for node in fused.graph.nodes), done.refused


def test_a_large_site_is_evaluated_on_blocks_of_its_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    p = program(masked=True)
    site, form = p.sites[1], Window(5, 1)
    rng = np.random.default_rng(3)
    mask = np.where(rng.random((2, 1, 30, 30)) < 0.2, -np.inf, 0)
    inputs = {"x": rng.normal(size=(2, 30, 32)).astype(np.float32), "mask": mask.astype(np.float32)}
    (arrays,) = recorded(p, p.sites, [inputs])
    given = {n: arrays[n] for n in site.inputs}
    whole = Reference(p, site, given)
    monkeypatch.setattr("rewriter.verify.reference.LARGEST", whole.scores // 3)
    part = Reference(p, site, given)
    assert part.blocks == ((0, 3), (13, 3), (27, 3)) and part.scores == whole.scores * 9 // 30
    output = arrays[site.output]
    assert part.of(output).size == output.size * 9 // 30
    np.testing.assert_allclose(
        part.site_value(), part.of(whole.site_value().reshape(output.shape)), rtol=1e-9
    )
    np.testing.assert_allclose(
        part.form_value(form), part.of(whole.form_value(form).reshape(output.shape)), rtol=1e-9
    )


def test_large_sites_are_verified_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rewriter.verify.reference.LARGEST", 200)
    p = program()
    _, done = rewrite(p, [(Window(5, 1), Selector()), (Scaled(), Selector("2", numbers=(range(2, 3),)))])
    assert [s.committed for s in done.sites] == [True, True, False]


def test_passes_are_callable_and_compose() -> None:
    p = program()
    window = WindowAttention(window=7, sinks=1, select="0-1")
    softmax = SoftmaxAttention(select="2")
    new = Sequential(softmax, window)(p)
    assert softmax.report is not None and [s.site for s in softmax.report.committed] == ["attention.2"]
    assert window.report is not None and len(window.report.committed) == 2
    x = attention_inputs(masked=False, length=60)
    assert 1e-4 < relative(p.run(*x)[0], new.run(*x)[0]) < 1.5


class Call(torch.nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def told(form: str, tokens: int) -> tuple[dict[str, Any], str]:
    """Return the record of one attention that gets a form, and what is printed of it."""
    operands = tuple(torch.zeros(1, 6, tokens, 64) for _ in range(3))
    _, report = rewrite(rewriter.trace(Call(), operands), [parse_apply(form)], verify=False)
    console = Console(width=400, file=io.StringIO(), record=True)
    console.print(rewriting_view(report.sites))
    return report.to_dict()["sites"][0], console.export_text()


def test_a_form_that_is_expected_to_be_slower_says_so() -> None:
    record, text = told("nystrom:landmarks=49", 257)
    assert record["expected_speed"] < 0.9
    assert "is expected to be slower at this length than one fused attention" in record["note"]
    assert f"1 site: {record['note']}" in text


@pytest.mark.parametrize(("form", "tokens"), [("nystrom:landmarks=49", 2048), ("softmax", 257)])
def test_no_other_form_says_that_it_is_slower(form: str, tokens: int) -> None:
    record, text = told(form, tokens)
    assert record["expected_speed"] >= 1
    assert record["note"] is None and "expected" not in text


def test_nothing_is_expected_of_a_length_that_is_not_known() -> None:
    _, report = rewrite(program(), [parse_apply("window:window=2")], verify=False)
    assert report.sites[0].to_dict()["expected_speed"] is None and report.sites[0].note is None
