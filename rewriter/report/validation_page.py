"""The page that ``validate --report`` writes: one file, no script, no request, light or dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from rewriter.report.charts import strip
from rewriter.report.graph_picture import Drawing, graph_picture
from rewriter.report.grids import Cell, Grid, columns, interval
from rewriter.report.markup import element, render
from rewriter.report.quality_sections import (
    budget_grid,
    case_grid,
    output_grid,
    step_grid,
    task_grid,
    telling_figures,
)
from rewriter.report.site_sections import attention_maps, depth_plot, faults, site_grid, statistic_grid
from rewriter.report.text import milliseconds, times
from rewriter.verify.bench import Row, SizeReport
from rewriter.verify.noise import MODEL_FACTOR
from rewriter.verify.per_site import PerSite
from rewriter.verify.provenance import Provenance
from rewriter.verify.validation import ValidationReport

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["validation_page"]


def validation_page(report: ValidationReport, drawings: Sequence[Drawing] = ()) -> str:
    """Return a report as one self-contained page.

    Parameters
    ----------
    report
        What was found.
    drawings
        Sites whose graphs are shown.
    """
    recorded = report.per_site if isinstance(report.per_site, PerSite) else None
    timings = [t for t in report.timings if isinstance(t, SizeReport)]
    view: dict[str, Any] = {
        "budget": budget_grid(report.budget),
        "tasks": task_grid(report),
        "outputs": output_grid(report),
        "three_way": step_grid(report),
        "sites": site_grid(recorded),
        "depth": depth_plot(recorded),
        "faults": faults(recorded),
        "statistics": statistic_grid(recorded),
        "maps": list(attention_maps(recorded)),
        "chosen": recorded is not None and recorded.chosen,
        "graphs": [_graph(d) for d in drawings if d.before is not None or d.after is not None],
        "timings": [_timing(t) for t in timings],
        "cases": case_grid(report),
        "provenance": _provenance(report),
        "plan": _plan(report),
    }
    kind, mark, headline = _headline(report)
    return render(
        "validation.html.jinja",
        style=_style(),
        original=report.original,
        rewritten=report.rewritten,
        kind=kind,
        mark=mark,
        headline=headline,
        verdict=_sentence(report.verdict, headline),
        basis=_BASIS[report.judged],
        figures=list(telling_figures(report, timings)),
        notes=report.notes,
        sections=[(id_, name) for id_, key, name in _SECTIONS if view[key]],
        **view,
    )


_SECTIONS = (
    ("budget", "budget", "Budget"),
    ("tasks", "tasks", "Task"),
    ("outputs", "outputs", "Outputs"),
    ("sites", "sites", "Sites"),
    ("attention", "maps", "Attention"),
    ("graph", "graphs", "Graph"),
    ("time", "timings", "Time"),
    ("inputs", "cases", "Inputs"),
    ("provenance", "provenance", "Provenance"),
)
"""Address, what there must be, and title of every section."""

_BASIS = {
    "noise floor": "Judged by the noise floor: an output may differ by at most"
    f" {MODEL_FACTOR:g} times what the original itself responds to its last bits.",
    "budget": "Judged by the budget above.",
    "nothing": "Measured, not judged: the model says that it is approximate, and no budget was given.",
}


def _headline(report: ValidationReport) -> tuple[str, str, str]:
    """Return kind, mark and words of the verdict."""
    if not report.ok:
        return "bad", "✗", "Failed"
    if report.judged == "nothing":
        return "open", "≈", "Measured, not judged"
    return "good", "✓", "Within budget" if report.judged == "budget" else "Same within the noise"


def _sentence(verdict: str, headline: str) -> str:
    """Return the verdict without what the headline above it says already."""
    said = headline.lower()
    rest = verdict[len(said) :].lstrip(" :,;") if verdict.lower().startswith(said) else verdict
    return f"{rest[:1].upper()}{rest[1:]}"


def _graph(drawing: Drawing) -> Mapping[str, Any]:
    def picture(step: Any, side: str) -> Cell:
        return "" if step is None else graph_picture(step, f"What computes {drawing.site} {side}")

    return {
        "name": drawing.site,
        "before": picture(drawing.before, "in the original"),
        "after": picture(drawing.after, "in the rewritten model"),
    }


def _timing(found: SizeReport) -> Mapping[str, Any]:
    longest = max((s for r in found.rows for s in r.seconds), default=0.0)
    return {
        "name": found.name,
        "rows": [_timed(r, longest, "first" if at == 0 else "other") for at, r in enumerate(found.rows)],
    }


def _timed(row: Row, longest: float, style: str) -> Mapping[str, Cell]:
    middle = row.middle
    if middle is None:
        return {"model": row.model, "strip": "", "median": row.error or "", "speed": ""}
    label = f"{len(row.seconds)} rounds of {row.model}, median {milliseconds(middle.median)}"
    return {
        "model": row.model,
        "strip": strip(row.seconds, longest, style, label),
        "median": milliseconds(middle.median),
        "speed": "" if row.speed is None else f"{times(row.speed.median)} ({interval(row.speed)})",
    }


def _provenance(report: ValidationReport) -> Mapping[str, Any]:
    facts: list[Mapping[str, Cell]] = [{"name": "seed", "value": str(report.seed)}]
    known = report.provenance if isinstance(report.provenance, Provenance) else None
    if known is not None:
        facts += [
            {"name": f.path, "value": element("span", f"sha256 {f.sha256}, {f.size:,} bytes", class_="mono")}
            for f in known.files
        ]
        facts += [
            {"name": name, "value": element("span", f"sha256 {sha}, graph and weights", class_="mono")}
            for name, sha in known.models.items()
        ]
        facts += [
            {"name": name, "value": element("span", f"sha256 {sha}, arrays", class_="mono")}
            for name, sha in known.data.items()
        ]
        facts.append({"name": "versions", "value": ", ".join(f"{n} {v}" for n, v in known.versions.items())})
        facts.append({"name": "machine", "value": known.machine})
    return {"facts": facts, "command": known.command if known is not None else None}


def _plan(report: ValidationReport) -> Grid | None:
    rows = [
        (s.site, s.form, s.fidelity, ", ".join(f"{k} {v}" for k, v in s.details.items()))
        for s in report.sites
    ]
    return Grid(columns("site", "form", "fidelity", "recorded"), rows) if rows else None


@lru_cache(maxsize=1)
def _style() -> Markup:
    from markupsafe import Markup

    return Markup(files("rewriter.report").joinpath("templates", "style.css").read_text(encoding="utf-8"))
