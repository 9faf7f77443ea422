"""What a comparison of two models found: a value that prints itself as JSON or as a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from rewriter.verify.budget import Outcome
from rewriter.verify.distance import Distance
from rewriter.verify.elements import ratio
from rewriter.verify.metrics import Element

if TYPE_CHECKING:
    from rewriter.report.graph_picture import Drawing

__all__ = ["AppliedForm", "CaseReport", "OutputReport", "Record", "Step", "TaskReport", "ValidationReport"]


SCHEMA = "validation-1"
"""What `ValidationReport.to_dict` follows; another number when a key changes its meaning or goes."""


class Record(Protocol):
    """A part of the report that another module makes: per site, provenance, a timing."""

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""


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
    noise
        What the same measures are between the original and itself with the last bits of its weights and
        inputs moved (`rewriter.verify.noise`): nothing below it says anything. None for an output that is
        not floating, and where it was not measured.
    worst
        Where the two are furthest apart; None where they are equal, and in pooled reports.
    case
        Name of the case that is worst in a pooled report.
    """

    output: str
    distance: Distance | None
    agreement: float | None
    tolerance: float | None
    ok: bool
    noise: Distance | None = None
    worst: Element | None = None
    case: str | None = None

    @property
    def factor(self) -> float | None:
        """How many times the noise floor the largest error is: the smallest factor that would pass."""
        if self.distance is None or self.noise is None:
            return None
        return ratio(self.distance.max_abs, self.noise.max_abs)


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
    sizes
        The numbers that were chosen for named dimensions; empty for data.
    """

    name: str
    group: str
    outputs: tuple[OutputReport, ...]
    error: str | None
    ok: bool
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """One leg of the three-way comparison, pooled over all cases, by output."""

    name: str
    outputs: Mapping[str, Distance]


@dataclass(frozen=True, slots=True)
class TaskReport:
    """A measure of what the models are for: word error rate, accuracy, text read.

    Parameters
    ----------
    name
        As in the budget ``task.NAME<=X``.
    original, rewritten
        What was measured of either; whether more is better only the user knows.
    """

    name: str
    original: float
    rewritten: float


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
    tasks
        Task metrics of both models, when any was asked for.
    notes
        What the reader should know: how names were matched, padding that was counted, what was left out.
    seed
        Of everything random.
    data_sha256
        Of the arrays of the data, in the order in which they were given; None where there was no data.
    per_site
        What was recorded at each site (`rewriter.verify.per_site.PerSite`), when that was asked for.
    timings
        Interleaved timings of both models, when there are any.
    provenance
        Versions, hashes, command (`rewriter.verify.provenance`), when it was recorded.
    drawings
        Graphs around a site in both models (`rewriter.report.graph_picture.Drawing`), for the page only.
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
    tasks: tuple[TaskReport, ...] = ()
    notes: tuple[str, ...] = ()
    seed: int = 0
    data_sha256: str | None = None
    per_site: Record | None = None
    timings: tuple[Record, ...] = ()
    provenance: Record | None = None
    drawings: tuple[Drawing, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, as ``docs/schemas/validation-1.json`` describes them."""
        return {
            "schema": SCHEMA,
            "original": self.original,
            "rewritten": self.rewritten,
            "ok": self.ok,
            "verdict": self.verdict,
            "exact": self.exact,
            "judged": self.judged,
            "seed": self.seed,
            "notes": list(self.notes),
            "budget": [
                {"budget": str(b.budget), "output": b.output, "measured": b.measured, "ok": b.ok}
                for b in self.budget
            ],
            "tasks": [asdict(t) for t in self.tasks],
            "summary": {group: [_plain(o) for o in outputs] for group, outputs in self.summary.items()},
            "sites": [
                {"site": s.site, "form": s.form, "fidelity": s.fidelity, **s.details} for s in self.sites
            ],
            "steps": [
                {"step": s.name, "outputs": {n: d.to_dict() for n, d in s.outputs.items()}}
                for s in self.steps
            ],
            "per_site": self.per_site.to_dict() if self.per_site is not None else None,
            "timings": [t.to_dict() for t in self.timings],
            "provenance": self.provenance.to_dict() if self.provenance is not None else None,
            "cases": [
                {
                    "case": c.name,
                    "group": c.group,
                    "ok": c.ok,
                    "error": c.error,
                    "sizes": dict(c.sizes),
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

        return validation_page(self, self.drawings)


def _plain(o: OutputReport) -> dict[str, Any]:
    measures: dict[str, Any] = {} if o.distance is None else dict(o.distance.to_dict())
    if o.agreement is not None:
        measures["agreement"] = o.agreement
    return {
        "output": o.output,
        "ok": o.ok,
        "tolerance": o.tolerance,
        **measures,
        "noise": o.noise.to_dict() if o.noise is not None else None,
        "factor": o.factor,
        "worst": asdict(o.worst) if o.worst is not None else None,
        "case": o.case,
    }
