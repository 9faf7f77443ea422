from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console, RenderableType

from rewriter.report.console import inspection_view, validation_view
from rewriter.report.inspection import refusal_record
from rewriter.report.sites_table import sites_view
from rewriter.report.timings import bench_view
from rewriter.report.validation_page import validation_page
from rewriter.sites.refusal import Refusal
from rewriter.verify.bench import BenchReport, Row, SizeReport
from rewriter.verify.budget import Budget, Outcome, parse_budget
from rewriter.verify.distance import Distance
from rewriter.verify.per_site import PerSite
from rewriter.verify.validation import (
    AppliedForm,
    CaseReport,
    OutputReport,
    Step,
    TaskReport,
    ValidationReport,
)
from tests.report.records import full_report

SITE = {
    "id": "attention.11",
    "kind": "attention",
    "heads": 9,
    "kv_heads": 3,
    "query_length": "sequence",
    "key_length": "past + sequence",
    "qk_dim": 64,
    "v_dim": 32,
    "normalizer": "softmax",
    "scale": 0.125,
    "mask": "causal+padding",
    "anchor": "/model/layers.11/self_attn/[MatMul]_1",
    "region_nodes": 17,
    "traits": ["softcap"],
    "constant": ["k", "v"],
    "empty_row": "never",
    "grid": None,
    "prefix_tokens": None,
    "consumers": [],
}
BLOCK = {
    "id": "channel-gate.3",
    "kind": "channel-gate",
    "mechanism": "squeeze-excite",
    "output": "mul_3",
    "sources": ["x"],
    "shape": ["batch", 64, 14, 14],
    "axes": [0, 1],
    "traits": ["pooled by mean", "sigmoid"],
    "nodes": 6,
}
REFUSED = {
    "anchor": "softmax_[bold]11",
    "reason": "a softmax over classes: no contraction follows it",
    "nearest": "pooling",
    "reached": "normaliser",
    "at": "other",
    "missed": False,
}
RECORD = {
    "model": "model.onnx",
    "format": "onnx",
    "nodes": 12345,
    "sites": [SITE],
    "refused": [REFUSED],
    "blocks": [BLOCK],
    "fusion": {"streams": [], "topology": None, "links": []},
    "coverage": 100.0,
}
DISTANCE = Distance(
    0,
    1.5e-7,
    1e-7,
    2e-8,
    153.2,
    1 - 1e-12,
    0.0,
    1.0,
    1e-8,
    1e-7,
    1.2e-7,
    1000,
    1.0,
    1.0,
    2e-6,
    1e-7,
    1e-8,
    1e-7,
    1.5e-7,
)


def report(**changes: Any) -> ValidationReport:
    output = OutputReport("logits", DISTANCE, None, 3e-6, True)
    ids = OutputReport("ids", None, 0.5, None, False)
    known: dict[str, Any] = {
        "original": "a.onnx",
        "rewritten": "b.onnx",
        "exact": True,
        "judged": "noise floor",
        "ok": False,
        "verdict": "50.00% of the elements differ",
        "summary": {"random": (output, ids)},
        "cases": (
            CaseReport("random, n=7", "random", (output, ids), None, False),
            CaseReport("zero inputs", "adversarial", (), "skipped: the model cannot", True),
        ),
        "budget": (parse_budget("cos>=0.9").check({"logits": DISTANCE}),),
        "sites": (AppliedForm("attention.0", "window:window=4", "training-free"),),
        "steps": (Step("source → original", {"logits": DISTANCE}),),
    }
    return ValidationReport(**{**known, **changes})


def shown(view: RenderableType, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(view)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    return text


@pytest.mark.parametrize("width", [80, 120])
def test_inspection(width: int) -> None:
    text = shown(inspection_view(RECORD, {"attention.11": 0.123}, {"sequence": 1024}), width)
    assert "when sequence=1024" in text
    for part in ("12.3%", "12,345 nodes", "1 site", "1 near-miss", "attention.11", "9:3", "64/32", "0.125"):
        assert part in text
    assert "/model/" in text
    assert "softmax_[bold]11" in "".join(text.split())  # a name is no markup
    for part in ("1 block", "channel-gate.3", "squeeze-excite", "batch × 64 × 14 × 14", "axes 0, 1"):
        assert part in text
    for part in ("pooling", "normaliser", "(at other)", "constant k, v"):
        assert "".join(part.split()) in "".join(text.split())
    assert "coverage" not in text


def test_nothing_found_is_said() -> None:
    assert "Nothing here looks like attention" in shown(
        inspection_view({**RECORD, "sites": [], "refused": [], "blocks": []}), 80
    )


@pytest.mark.parametrize("width", [80, 120])
def test_validation(width: int) -> None:
    text = shown(validation_view(report()), width)
    for part in ("1.5e-7", "3e-6", "153", "50.00% differ", "skipped", "window:window=4", "source → original"):
        assert part in text, part
    assert "✗ 50.00% of the elements differ" in text
    assert "window:window=4" not in shown(validation_view(report(), sites=False), width)


@pytest.mark.parametrize("judged", ["noise floor", "nothing"])
@pytest.mark.parametrize("width", [80, 100])
def test_long_names_are_folded_and_no_figure_is_lost(judged: str, width: int) -> None:
    name = "é" * 150
    known = full_report()
    outputs = tuple(replace(o, output=name) for o in known.summary["random"])
    found = replace(
        known,
        judged=judged,
        summary={"adversarial": outputs},
        cases=(CaseReport(name, "adversarial", outputs, "skipped: too large", True),) * 10,
        budget=(),
        steps=(Step("source → rewritten", {name: DISTANCE}),),
        sites=(AppliedForm(name, "window:window=4", "training-free"),),
        tasks=(TaskReport(name, 0.03125, 0.0425),),
    )
    assert isinstance(known.per_site, PerSite)
    sites = replace(known.per_site, sites=tuple(replace(s, site=name) for s in known.per_site.sites))
    for view in (validation_view(found), sites_view(sites)):
        whole, folded = shown(view, 2000), shown(view, width)
        assert folded.count("é") == whole.count("é")
        words = Counter(folded.split())
        assert not Counter(w for w in whole.split() if w[0].isdigit()) - words
        assert "fidelity" not in whole or {"fidelity", "training-free", "skipped:"} <= set(words)


def test_an_approximation_shows_similarity_and_no_tolerance() -> None:
    text = shown(validation_view(report(judged="nothing", exact=False)), 80)
    assert "<1" in text
    assert "top-1" in text
    assert "allowed" not in text


def test_the_page_has_the_same_numbers() -> None:
    page = validation_page(report())
    for part in (
        "1.5e-7",
        "153",
        "1-1e-12",
        "50.00% differ",
        "skipped",
        "window:window=4",
        "cos&gt;=0.9",
        "✗",
    ):
        assert part in page, part


def test_what_was_missed_is_counted() -> None:
    missed = {**REFUSED, "reached": "scores", "missed": True}
    text = shown(inspection_view({**RECORD, "refused": [missed], "coverage": 50.0}), 120)
    assert "50.0% coverage" in text


def test_refusal_records_have_the_keys_of_the_contract() -> None:
    assert refusal_record(Refusal("node", "why", "other", "pooling", "scores")) == {
        "anchor": "node",
        "reason": "why",
        "nearest": "pooling",
        "reached": "scores",
        "at": "other",
        "missed": True,
    }


def test_tolerances_that_would_pass_hold_on_all_inputs() -> None:
    large = replace(DISTANCE, max_abs=7.0, tol=0.25)
    near = OutputReport("logits", replace(DISTANCE, elem_rel=0.5), None, 1e-9, False, noise=DISTANCE)
    far = OutputReport("logits", large, None, 1e-9, False, noise=DISTANCE)
    failed = report(
        summary={"random": (near,), "adversarial": (far,)}, tasks=(TaskReport("wer", 0.03, 0.04),)
    )
    text = " ".join(shown(validation_view(failed), 120).split())
    assert (
        "logits would pass with atol=7, or rtol=0.5, or atol=rtol=0.25; that is 4.67e7 times the noise"
        in text
    )
    assert "wer 0.03 0.04 0.01" in text
    assert "would pass" not in shown(validation_view(report(ok=True)), 120)
    broken = OutputReport("logits", replace(large, pattern=1), None, 1e-9, False)
    assert "would pass" not in shown(validation_view(report(summary={"random": (broken,)})), 120)


def test_notes_are_shown() -> None:
    assert "names differ: a = b" in shown(validation_view(report(notes=("names differ: a = b",))), 120)


def test_budgets_are_not_told_twice() -> None:
    met = Outcome(Budget("cos", 0.9), "logits", 0.95, ok=True)
    missed = Outcome(Budget("cos", 0.99), "logits", 0.95, ok=False)
    found = report(
        budget=(met, missed), judged="budget", verdict=f"over budget on random inputs: {missed}", ok=False
    )
    text = " ".join(shown(validation_view(found), 120).split())
    assert text.count(str(met)) == text.count(str(missed)) == 1
    assert "✗ over budget on random inputs" in text


def test_what_is_nan_in_one_model_only_is_said_of_every_input() -> None:
    broken = OutputReport("logits", replace(DISTANCE, pattern=3), None, 1e-9, False)
    found = report(cases=(CaseReport("random", "random", (broken,), None, False),))
    assert "logits: 3 NaN/inf in one model only" in shown(validation_view(found), 120)


def test_why_a_model_was_not_timed_is_told_whole() -> None:
    rows = (
        Row("a.onnx", (0.01,) * 3),
        Row("b.onnx", error="input x has shape [1, 3], expected " + "[n, 4]" * 20),
    )
    text = shown(bench_view(BenchReport(("a.onnx", "b.onnx"), (SizeReport("n=3", {"n": 3}, rows),))), 80)
    assert "not run" in text and "10 ms" in text
    assert "".join(text.split()).count("[n,4]") == 20
