"""The page that ``validate --report`` writes: one file, no script, no request, light or dark."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np

from rewriter.report.charts import Series, bars, depth, strip
from rewriter.report.graph_picture import Drawing, graph_picture
from rewriter.report.markup import element, render
from rewriter.report.png import data_uri
from rewriter.report.text import figure, milliseconds, similarity, times
from rewriter.verify.attention_statistics import AttentionStatistics
from rewriter.verify.bench import Row, SizeReport
from rewriter.verify.budget import METRICS, Outcome
from rewriter.verify.intervals import Interval
from rewriter.verify.noise import MODEL_FACTOR
from rewriter.verify.per_site import AttentionMap, PerSite, SiteRecord
from rewriter.verify.provenance import Provenance
from rewriter.verify.validation import CaseReport, OutputReport, ValidationReport

__all__ = ["used", "validation_page"]

PICTURES = 8
"""Sites whose attention is shown, the worst first."""

PIXELS = 96
"""Sides of a map: larger ones are averaged over blocks."""

FULL = 0.995
"""Quantile of the weights that gets the full colour."""

Cell = str  # text, or markup made by `element`


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    name: str
    number: bool = False


@dataclass(frozen=True, slots=True)
class Grid:
    """A table, its sentence, and its title where it is folded."""

    columns: tuple[Column, ...]
    rows: Sequence[Sequence[Cell]]
    lead: str = ""
    summary: str = ""


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
        "budget": _budget(report.budget),
        "tasks": _tasks(report),
        "outputs": _outputs(report),
        "three_way": _three_way(report),
        "sites": _sites(recorded),
        "depth": _depth(recorded),
        "statistics": _statistics(recorded),
        "maps": list(_maps(recorded)),
        "graphs": [_graph(d) for d in drawings if d.before is not None or d.after is not None],
        "timings": [_timing(t) for t in timings],
        "cases": _cases(report),
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
        verdict=report.verdict,
        basis=_BASIS[report.judged],
        figures=list(_figures(report, timings)),
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


def _figures(report: ValidationReport, timings: Sequence[SizeReport]) -> Iterator[Mapping[str, str]]:
    """Yield what a reader wants to know first, of the inputs that decide."""
    group = "data" if "data" in report.summary else next(iter(report.summary), None)
    outputs = [o for o in report.summary.get(group or "", ()) if o.distance is not None]
    on = f"worst output, {group} inputs"
    if outputs and report.judged != "noise floor":
        d = [o.distance for o in outputs if o.distance is not None]
        yield {"name": "Cosine", "value": similarity(min(x.cos for x in d)), "note": on}
        yield {"name": "SQNR", "value": f"{figure(min(x.sqnr for x in d))} dB", "note": on}
        yield {"name": "Relative error", "value": figure(max(x.rel for x in d)), "note": on}
    elif outputs:
        errors = [(o.distance.max_abs, o) for o in outputs if o.distance is not None]
        largest, worst = max(errors, key=lambda pair: pair[0])
        yield {"name": "Largest error", "value": figure(largest), "note": worst.output}
        if worst.factor is not None:
            yield {"name": "Against the noise", "value": times(worst.factor), "note": "of the noise floor"}
    changed = len(report.sites)
    if changed:
        fidelity = ", ".join(dict.fromkeys(s.fidelity for s in report.sites))
        yield {"name": "Sites rewritten", "value": str(changed), "note": fidelity}
    ran = sum(c.error is None for c in report.cases)
    yield {"name": "Inputs", "value": str(ran), "note": ", ".join(report.summary)}
    speeds = [(t, r.speed) for t in timings for r in t.rows if r.speed is not None]
    if speeds:
        at, speed = speeds[-1]
        sure = speed.excludes(1.0)
        yield {
            "name": "Speed",
            "value": times(speed.median) if sure else "≈ 1×",
            "note": f"{_range(speed)}{'' if sure else ', undecided'}; {at.name}",
        }


# the quality


def used(outcome: Outcome) -> float | None:
    """Return which share of what a budget allows was used: 1 is the bound, more is over it.

    Errors count as they are; a similarity by how far it is from 1; SQNR by the error that it stands for.
    None where that says nothing: a bound of zero, a task metric that should be large.
    """
    budget, measured = outcome.budget, outcome.measured
    metric = METRICS.get(budget.metric)
    if not math.isfinite(measured):
        return None
    if budget.metric == "sqnr":
        return float(10 ** ((budget.bound - measured) / 20))
    if budget.sign == "<=":
        return measured / budget.bound if budget.bound > 0 else None
    if metric is not None and metric.high == 1.0 and budget.bound < 1.0:
        return (1 - measured) / (1 - budget.bound)
    return None


def _budget(outcomes: Sequence[Outcome]) -> Grid | None:
    rows = [(str(o.budget), o.output, figure(o.measured, 4), _gauge(used(o)), _state(o.ok)) for o in outcomes]
    columns = _columns("budget", "output", ">measured", "used", "")
    return Grid(columns, rows) if rows else None


def _gauge(part: float | None) -> Cell:
    if part is None:
        return ""
    over = part > 1
    filled = element("i", style=f"width:{min(max(part, 0.0) / 1.5, 1.0):.1%}")
    said = element("span", f"{part:.0%} of the bound", class_="hidden")
    return element("div", filled, element("b"), said, class_="gauge over" if over else "gauge")


def _tasks(report: ValidationReport) -> Grid | None:
    rows = [(t.name, figure(t.original, 4), figure(t.rewritten, 4)) for t in report.tasks]
    return Grid(_columns("task", ">original", ">rewritten"), rows) if rows else None


def _outputs(report: ValidationReport) -> Grid:
    rows = [
        (o.output, group, *_measures(o), _state(o.ok) if report.judged == "noise floor" else "")
        for group, outputs in report.summary.items()
        for o in outputs
    ]
    return Grid(_columns("output", "inputs", *_MEASURES, ""), rows)


_MEASURES = (">max error", ">× noise", ">rel", ">SQNR dB", ">cos", ">KL", ">top-1")


def _measures(output: OutputReport) -> tuple[Cell, ...]:
    d = output.distance
    if d is None:
        equal = output.agreement == 1.0
        return ("equal" if equal else f"{1 - (output.agreement or 0.0):.2%} differ", *[""] * 6)
    error = f"{d.pattern} NaN/inf" if d.pattern else figure(d.max_abs)
    factor = figure(output.factor) if output.factor is not None else ""
    return (error, factor, figure(d.rel), figure(d.sqnr), similarity(d.cos), figure(d.kl), similarity(d.top1))


def _three_way(report: ValidationReport) -> Grid | None:
    rows = [
        (s.name, n, figure(d.max_abs), figure(d.rel), similarity(d.cos))
        for s in report.steps
        for n, d in s.outputs.items()
    ]
    return Grid(_columns("step", "output", ">max error", ">rel", ">cos"), rows) if rows else None


def _cases(report: ValidationReport) -> Grid:
    rows: list[Sequence[Cell]] = []
    for case in report.cases:
        rows += _case(case, report.judged == "noise floor")
    failed = sum(not c.ok for c in report.cases)
    skipped = sum(c.ok and c.error is not None for c in report.cases)
    told = [f"{len(report.cases)} inputs"]
    told += [f"{failed} failed"] if failed else []
    told += [f"{skipped} skipped"] if skipped else []
    return Grid(_columns("input", "output", *_MEASURES, ""), rows, summary=", ".join(told))


def _case(case: CaseReport, judged: bool) -> Iterator[Sequence[Cell]]:
    if case.error is not None:
        yield (case.name, case.error, *[""] * len(_MEASURES), _state(None if case.ok else False))
    for o in case.outputs:
        yield (case.name, o.output, *_measures(o), _state(o.ok) if judged else "")


# the sites


def _sites(recorded: PerSite | None) -> Grid | None:
    if recorded is None or not recorded.sites:
        return None
    rows = [
        (
            s.site,
            _form(s),
            figure(s.local.distance.rel) if s.local else "",
            figure(s.accumulated.distance.rel) if s.accumulated else "",
            _heads(s),
            _pair(s, "entropy"),
            _site_state(s, recorded.blamed),
        )
        for s in recorded.sites
    ]
    pairing = (
        f"{recorded.pairing[:1].upper()}{recorded.pairing[1:].rstrip('.')}. " if recorded.pairing else ""
    )
    lead = f"{pairing}Measured on {_counted(recorded.cases, 'input')}."
    columns = _columns("site", "form", ">alone", ">as it runs", "error by head", "entropy", "")
    return Grid(columns, rows, lead=lead)


def _form(site: SiteRecord) -> Cell:
    note = element("span", site.note, class_="aside") if site.note else ""
    return element("span", site.form or "", " " if note else "", note)


def _site_state(site: SiteRecord, blamed: Sequence[str]) -> Cell:
    if site.site in blamed:
        return element("span", "✗ to blame", class_="state bad-text")
    if site.fidelity not in (None, "exact"):
        return element("span", "approximate", class_="whole soft")
    if site.form is None and site.ok:
        return element("span", "✓ as it was", class_="whole soft")
    return _state(site.ok)


def _heads(site: SiteRecord) -> Cell:
    error = site.local or site.accumulated
    if error is None or not any(error.heads):
        return ""
    names = [f"head {k}" for k in range(len(error.heads))]
    worst = max(range(len(names)), key=lambda k: _finite(error.heads[k]))
    label = f"{len(names)} heads, largest {figure(error.heads[worst])} at {names[worst]}"
    return bars(error.heads, names, label)


def _depth(recorded: PerSite | None) -> Any:
    if recorded is None or len(recorded.sites) < 2:
        return None
    alone = [s.local.distance.rel if s.local else None for s in recorded.sites]
    running = [s.accumulated.distance.rel if s.accumulated else None for s in recorded.sites]
    if not any(v for v in (*alone, *running)):
        return None
    label = "Relative error of the result of every site, alone and as the model runs; the table below has it"
    return depth([Series("before", alone), Series("after", running)], [s.site for s in recorded.sites], label)


_STATISTICS = {
    "entropy": "entropy",
    "mean_distance": "distance",
    "sink_mass": "sink",
    "effective_rank": "rank",
    "top_mass": "top 8",
}


def _statistics(recorded: PerSite | None) -> Grid | None:
    sites = [s for s in recorded.sites if s.before is not None] if recorded is not None else []
    rows = [(s.site, *(_pair(s, key) for key in _STATISTICS)) for s in sites]
    return Grid(_columns("site", *_STATISTICS.values()), rows) if rows else None


def _pair(site: SiteRecord, statistic: str) -> Cell:
    if site.before is None:
        return ""
    before = _mean(site.before, statistic)
    if site.after is None:
        return before
    return element(
        "span",
        element("span", element("span", "before ", class_="hidden"), before, class_="from"),
        " → ",
        element(
            "span", element("span", "after ", class_="hidden"), _mean(site.after, statistic), class_="to"
        ),
        class_="pair",
    )


def _mean(found: AttentionStatistics, statistic: str) -> str:
    known = [v for v in getattr(found, statistic) if math.isfinite(v)]
    mean = sum(known) / len(known) if known else math.nan
    return f"{mean:.2f}" if 0.1 <= abs(mean) < 1000 else figure(mean) if known else "–"


def _maps(recorded: PerSite | None) -> Iterator[Mapping[str, str]]:
    sites = [s for s in recorded.sites if s.maps] if recorded is not None else []
    worst = sorted(sites, key=_badness, reverse=True)[:PICTURES]
    for site in sites:
        if site in worst:
            for one in site.maps[:1]:
                before, after = _opacities(one)
                yield {"name": f"{site.site}, head {one.head}", "before": before, "after": after}


def _badness(site: SiteRecord) -> float:
    error = site.local or site.accumulated
    return _finite(error.distance.rel) if error is not None else 0.0


def _opacities(one: AttentionMap) -> tuple[str, str]:
    """Return both maps as addresses of pictures on one scale: a few large weights do not hide the others."""
    before, after = (_coarse(np.nan_to_num(np.abs(m))) for m in (one.before, one.after))
    shown = np.concatenate([before.ravel(), after.ravel()])
    shown = shown[shown > 0]
    top = float(np.quantile(shown, FULL)) if shown.size else 1.0
    return data_uri(np.sqrt(before / top)), data_uri(np.sqrt(after / top))


def _coarse(weights: np.ndarray) -> np.ndarray:
    """Return a map of `PIXELS` a side at most: means over blocks."""
    for axis in (0, 1):
        edges = np.linspace(0, weights.shape[axis], min(PIXELS, weights.shape[axis]) + 1).astype(int)
        sums = np.add.reduceat(weights, edges[:-1], axis=axis)
        sizes = np.diff(edges)
        weights = sums / (sizes[:, None] if axis == 0 else sizes)
    return weights


def _graph(drawing: Drawing) -> Mapping[str, Any]:
    def picture(step: Any, side: str) -> Cell:
        return "" if step is None else graph_picture(step, f"What computes {drawing.site} {side}")

    return {
        "name": drawing.site,
        "before": picture(drawing.before, "in the original"),
        "after": picture(drawing.after, "in the rewritten model"),
    }


# time, plan, provenance


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
        "speed": "" if row.speed is None else f"{times(row.speed.median)} ({_range(row.speed)})",
    }


def _range(found: Interval) -> str:
    return f"{found.low:.2f}–{found.high:.2f} at {found.confidence:.0%}"


def _provenance(report: ValidationReport) -> Mapping[str, Any]:
    facts: list[Mapping[str, Cell]] = [{"name": "seed", "value": str(report.seed)}]
    known = report.provenance if isinstance(report.provenance, Provenance) else None
    if known is not None:
        facts += [
            {"name": f.path, "value": element("span", f"sha256 {f.sha256}, {f.size:,} bytes", class_="mono")}
            for f in known.files
        ]
        facts.append({"name": "versions", "value": ", ".join(f"{n} {v}" for n, v in known.versions.items())})
        facts.append({"name": "machine", "value": known.machine})
    return {"facts": facts, "command": known.command if known is not None else None}


def _plan(report: ValidationReport) -> Grid | None:
    rows = [
        (s.site, s.form, s.fidelity, ", ".join(f"{k} {v}" for k, v in s.details.items()))
        for s in report.sites
    ]
    return Grid(_columns("site", "form", "fidelity", "recorded"), rows) if rows else None


# small things


def _columns(*names: str) -> tuple[Column, ...]:
    return tuple(Column(n.lstrip(">"), n.startswith(">")) for n in names)


def _state(ok: bool | None) -> Cell:
    if ok is None:
        return ""
    return element("span", "✓ pass" if ok else "✗ fail", class_=f"state {'good' if ok else 'bad'}-text")


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _counted(number: int, one: str) -> str:
    return f"{number} {one if number == 1 else one + 's'}"


@lru_cache(maxsize=1)
def _style() -> Any:
    from markupsafe import Markup

    return Markup(files("rewriter.report").joinpath("templates", "style.css").read_text(encoding="utf-8"))
