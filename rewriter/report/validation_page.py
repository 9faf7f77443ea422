"""The page that ``validate --report`` writes."""

from __future__ import annotations

from collections.abc import Iterator

from rewriter.report.page import page, paragraph, section
from rewriter.report.text import figure, share
from rewriter.verify.noise import MODEL_FACTOR
from rewriter.verify.validation import OutputReport, ValidationReport

__all__ = ["validation_page"]

MEASURES = ("max error", "tolerance", "rel", "SQNR dB", "cos", "KL", "top-1", "")


def validation_page(report: ValidationReport) -> str:
    """Return the report as one self-contained page."""
    return page(f"{report.original} against {report.rewritten}", report.ok, report.verdict, _body(report))


def _body(report: ValidationReport) -> Iterator[str]:
    yield paragraph(_BASIS[report.judged])
    if report.budget:
        rows = [(str(o.budget), o.output, figure(o.measured), "✓" if o.ok else "✗") for o in report.budget]
        yield section("Budget", ("budget", "output", "measured", ""), rows)
    pooled = [
        (group, o.output, *_row(o, report.judged))
        for group, outputs in report.summary.items()
        for o in outputs
    ]
    yield section("Outputs", ("inputs", "output", *MEASURES), pooled)
    if report.sites:
        yield section(
            "Rewritten sites",
            ("site", "form", "fidelity"),
            [(s.site, s.form, s.fidelity) for s in report.sites],
        )
    if report.steps:
        legs = [
            (s.name, n, figure(d.max_abs), figure(d.rel), share(d.cos))
            for s in report.steps
            for n, d in s.outputs.items()
        ]
        yield section("Three ways", ("step", "output", "max error", "rel", "cos"), legs)
    cases = [
        (c.name, c.group, o.output, *_row(o, report.judged))
        for c in report.cases
        if c.error is None
        for o in c.outputs
    ]
    cases += [(c.name, c.group, c.error, *[""] * len(MEASURES)) for c in report.cases if c.error is not None]
    yield section("Every input", ("input", "group", "output", *MEASURES), cases)


_BASIS = {
    "noise floor": "Judged by the noise floor: an output may differ by at most"
    f" {MODEL_FACTOR:g} times what the original itself responds to its last bits.",
    "budget": "Judged by the budget below.",
    "nothing": "Measured, not judged: the model says that it is approximate, and no budget was given.",
}


def _row(output: OutputReport, judged: str) -> tuple[str, ...]:
    mark = "" if judged != "noise floor" else "✓" if output.ok else "✗"
    d = output.distance
    if d is None:
        equal = "equal" if output.agreement == 1.0 else f"{1 - (output.agreement or 0.0):.2%} differ"
        return (equal, "equal", "", "", "", "", "", mark)
    error = f"{d.pattern} NaN/inf" if d.pattern else figure(d.max_abs)
    return (
        error,
        figure(output.tolerance),
        figure(d.rel),
        figure(d.sqnr),
        share(d.cos),
        figure(d.kl),
        share(d.top1),
        mark,
    )
