"""What a comparison of two models found: a value that prints itself as JSON or as a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rewriter.verify.budget import Outcome
from rewriter.verify.distance import Distance

__all__ = ["AppliedForm", "CaseReport", "OutputReport", "Step", "ValidationReport"]


@dataclass(frozen=True, slots=True)
class AppliedForm:
    """What the rewritten model says about one of its sites.

    Parameters
    ----------
    site
        Its id, where the model records one.
    form
        ``window:window=512,sinks=4``.
    fidelity
        ``exact``, ``training-free``, ``calibrated`` or ``distilled``.
    details
        Everything else that was recorded.
    """

    site: str
    form: str
    fidelity: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OutputReport:
    """One output, over one case or pooled over a group of them.

    Parameters
    ----------
    output
        Its name in the original.
    distance
        All measures; None for an output that is not floating.
    agreement
        Share of equal elements, for an output that is not floating; None otherwise.
    tolerance
        What the largest absolute error may be; None where nothing was derived.
    ok
        Whether it passes.
    """

    output: str
    distance: Distance | None
    agreement: float | None
    tolerance: float | None
    ok: bool


@dataclass(frozen=True, slots=True)
class CaseReport:
    """One input.

    Parameters
    ----------
    name, group
        As `rewriter.verify.inputs.Case`.
    outputs
        One per output; empty when nothing could be compared.
    error
        Why nothing could be compared, or None.
    ok
        Whether it passes; a case that the original itself cannot run passes, as it was skipped.
    """

    name: str
    group: str
    outputs: tuple[OutputReport, ...]
    error: str | None
    ok: bool


@dataclass(frozen=True, slots=True)
class Step:
    """One leg of the three-way comparison, pooled over all cases, by output."""

    name: str
    outputs: Mapping[str, Distance]


@dataclass(frozen=True)
class ValidationReport:
    """The verdict on a rewritten model.

    Parameters
    ----------
    original, rewritten
        What was compared.
    exact
        Whether the rewritten model claims to be the same function.
    judged
        What the verdict rests on: ``"noise floor"``, ``"budget"`` or ``"nothing"`` (approximate, and
        no budget: measured and reported only).
    ok
        The verdict.
    verdict
        The verdict in a sentence.
    summary
        Measures pooled per group of cases, by group, then one per output.
    cases
        Every case.
    budget
        Every budget and what was measured against it.
    sites
        What the rewritten model says about its sites.
    steps
        Source to original and source to rewritten, when a source was given.
    """

    original: str
    rewritten: str
    exact: bool
    judged: str
    ok: bool
    verdict: str
    summary: Mapping[str, tuple[OutputReport, ...]]
    cases: tuple[CaseReport, ...]
    budget: tuple[Outcome, ...] = ()
    sites: tuple[AppliedForm, ...] = ()
    steps: tuple[Step, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "original": self.original,
            "rewritten": self.rewritten,
            "ok": self.ok,
            "verdict": self.verdict,
            "exact": self.exact,
            "judged": self.judged,
            "budget": [
                {"budget": str(b.budget), "output": b.output, "measured": b.measured, "ok": b.ok}
                for b in self.budget
            ],
            "summary": {group: [_plain(o) for o in outputs] for group, outputs in self.summary.items()},
            "sites": [
                {"site": s.site, "form": s.form, "fidelity": s.fidelity, **s.details} for s in self.sites
            ],
            "steps": [
                {"step": s.name, "outputs": {n: d.to_dict() for n, d in s.outputs.items()}}
                for s in self.steps
            ],
            "cases": [
                {
                    "case": c.name,
                    "group": c.group,
                    "ok": c.ok,
                    "error": c.error,
                    "outputs": [_plain(o) for o in c.outputs],
                }
                for c in self.cases
            ],
        }

    def to_json(self) -> str:
        """Return everything as one JSON object; numbers that are not finite are strings."""
        from rewriter.report.json_text import dumps

        return dumps(self.to_dict())

    def to_html(self) -> str:
        """Return one self-contained page."""
        from rewriter.report.validation_page import validation_page

        return validation_page(self)


def _plain(o: OutputReport) -> dict[str, Any]:
    measures: dict[str, Any] = {} if o.distance is None else dict(o.distance.to_dict())
    if o.agreement is not None:
        measures["agreement"] = o.agreement
    return {"output": o.output, "ok": o.ok, "tolerance": o.tolerance, **measures}
