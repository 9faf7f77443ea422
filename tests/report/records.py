"""A report with everything in it, made by hand: nothing is run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rewriter.report.graph_picture import Drawing
from rewriter.report.neighbourhood import Step
from rewriter.verify.attention_statistics import AttentionStatistics
from rewriter.verify.bench import Row, SizeReport
from rewriter.verify.budget import Budget, Outcome
from rewriter.verify.distance import distance
from rewriter.verify.intervals import median_interval
from rewriter.verify.per_site import AttentionMap, PerSite, SiteError, SiteRecord
from rewriter.verify.provenance import FileHash, Provenance
from rewriter.verify.validation import (
    AppliedForm,
    CaseReport,
    OutputReport,
    TaskReport,
    ValidationReport,
)
from rewriter.verify.validation import (
    Step as Leg,
)

HOSTILE = '</style><script>alert(1)</script><img src=x onerror="alert(2)">&\'"{{ 7*7 }}'
"""A name of a node that would do harm on a page that does not escape it."""


def full_report(sites: int = 12, name: str = "logits", heads: int = 6, tokens: int = 257) -> ValidationReport:
    """Return a passing report of a windowed model; the names of everything begin with ``name``."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 64))
    moved = distance(x, x + 0.01 * rng.standard_normal(x.shape))
    noise = distance(x, x + 1e-6 * rng.standard_normal(x.shape))
    output = OutputReport(name, moved, None, None, True, noise)
    whole = OutputReport(f"{name} ids", None, 0.98, None, True)
    cases = (
        CaseReport("random, length=33", "random", (output, whole), None, True, {"length": 33}),
        CaseReport("huge inputs", "adversarial", (), "skipped: too large", True),
        CaseReport(f"{name}.npz", "data", (output, whole), None, True),
    )
    seconds = 0.1 * (1 + 0.05 * rng.random(15)), 0.07 * (1 + 0.05 * rng.random(15))
    speed = median_interval([float(a / b) for a, b in zip(*seconds, strict=True)])
    rows = (
        Row("original", tuple(map(float, seconds[0])), None, 300 << 20),
        Row(f"{name}.onnx", tuple(map(float, seconds[1])), speed, 200 << 20),
    )
    return ValidationReport(
        original=f"{name}.onnx",
        rewritten=f"{name}-window.onnx",
        exact=False,
        judged="budget",
        ok=True,
        verdict="within budget on data inputs",
        summary={"random": (output, whole), "data": (output, whole)},
        cases=cases,
        budget=(
            Outcome(Budget("cos", 0.99), name, 0.9999, True),
            Outcome(Budget("sqnr", 30.0), name, 40.0, True),
            Outcome(Budget("rel", 0.01), name, 0.0099, True),
        ),
        sites=tuple(
            AppliedForm(f"attention.{k}", "window:window=13,sinks=1", "training-free", {"error": name})
            for k in range(sites)
        ),
        steps=(Leg("source → original", {name: noise}), Leg("source → rewritten", {name: moved})),
        tasks=(TaskReport("wer", 0.03, 0.034),),
        notes=(f"{name}: outputs were matched by name",),
        seed=3,
        per_site=PerSite(
            tuple(_site(rng, k, name, heads, tokens) for k in range(sites)),
            pairing="Sites were paired by what the rewritten model notes.",
            cases=3,
        ),
        timings=(SizeReport("length=257", {"length": 257}, rows),),
        provenance=Provenance(
            {"python": "3.11.2", "torch": "2.13.0"},
            "Linux x86_64, 2 processors",
            (FileHash(f"{name}.onnx", "0" * 64, 12345),),
            3,
            f"rewriter validate '{name}.onnx'",
            data={name: "1" * 64},
        ),
    )


def failing(report: ValidationReport) -> ValidationReport:
    """Return the same report with a budget missed and a site to blame."""
    assert isinstance(report.per_site, PerSite)
    missed = Outcome(Budget("cos", 0.99), report.original, 0.97, False)
    *others, last = report.per_site.sites
    wrong = replace(last, ok=False, error=0.5, tolerance=1e-5)
    return replace(
        report,
        ok=False,
        verdict="over budget on data inputs: cos is 0.97, which misses cos>=0.99",
        budget=(missed, *report.budget),
        per_site=replace(report.per_site, sites=(*others, wrong)),
    )


def drawing(name: str = "/layer.0/attention") -> Drawing:
    """Return a site with a fused node after it."""
    q, k, v = (Step(f"{name}/{n}", "Transpose", "[1, 6, 257, 64]", n) for n in ("query", "key", "value"))
    scores = Step(f"{name}/MatMul", "MatMul", "[1, 6, 257, 257]", "scores", [q, k])
    weights = Step(f"{name}/Softmax", "Softmax", "[1, 6, 257, 257]", "weights", [scores])
    last = Step(f"{name}/MatMul_1", "MatMul", "[1, 6, 257, 64]", "", [weights, v], mark=True, note="site.0")
    fused = Step(f"{name}/window", "window_attention", "[1, 6, 257, 64]", "", [q, k, v], mark=True)
    return Drawing("attention.0", last, fused)


def _site(rng: np.random.Generator, at: int, name: str, heads: int, tokens: int) -> SiteRecord:
    x = rng.standard_normal((8, 16))
    alone, running = (distance(x, x + s * (at + 1) * rng.standard_normal(x.shape)) for s in (0.01, 0.02))
    error = tuple(float(v) for v in 0.1 * rng.random(heads))
    apart = np.abs(np.arange(tokens)[:, None] - np.arange(tokens))
    weights = np.exp(2 * rng.standard_normal((tokens, tokens)) - apart / 9)
    weights /= weights.sum(-1, keepdims=True)
    statistics = AttentionStatistics(*[tuple(float(v) for v in 3 + rng.random(heads)) for _ in range(5)])
    return SiteRecord(
        site=f"attention.{at}",
        kind="attention",
        output=f"{name}/{at}",
        form="window:window=13,sinks=1",
        fidelity="training-free",
        paired_by="notes",
        local=SiteError(alone, error),
        accumulated=SiteError(running, error),
        before=statistics,
        after=statistics,
        maps=(AttentionMap(at % heads, weights, weights * (apart < 13)),),
        note=name if at == 0 else None,
    )
