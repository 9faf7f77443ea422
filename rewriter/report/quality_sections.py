"""What a page says about quality: the first figures, budgets, tasks, outputs, inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from rewriter.report.grids import Cell, Grid, columns, interval, state
from rewriter.report.markup import element
from rewriter.report.text import figure, similarity, times
from rewriter.verify.bench import SizeReport
from rewriter.verify.budget import METRICS, Outcome
from rewriter.verify.validation import CaseReport, OutputReport, ValidationReport

__all__ = ["budget_grid", "case_grid", "output_grid", "step_grid", "task_grid", "telling_figures", "used"]


def telling_figures(report: ValidationReport, timings: Sequence[SizeReport]) -> Iterator[Mapping[str, str]]:
    """Yield what a reader wants to know first, of the inputs that decide."""
    group = "data" if "data" in report.summary else next(iter(report.summary), None)
    outputs = [o for o in report.summary.get(group or "", ()) if o.distance is not None]
    on = f"worst output, {group} inputs"
    for task in report.tasks:
        yield {
            "name": task.name,
            "value": figure(task.rewritten),
            "note": f"task; {figure(task.original)} before",
        }
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
            "note": f"{interval(speed)}{'' if sure else ', undecided'}; {at.name}",
        }


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


def budget_grid(outcomes: Sequence[Outcome]) -> Grid | None:
    """Return every budget with how much of it was used; None without any."""
    rows = [(str(o.budget), o.output, figure(o.measured, 4), _gauge(used(o)), state(o.ok)) for o in outcomes]
    wanted = columns("budget", "output", ">measured", "used", "")
    return Grid(wanted, rows) if rows else None


def _gauge(part: float | None) -> Cell:
    if part is None:
        return ""
    over = part > 1
    filled = element("i", style=f"width:{min(max(part, 0.0) / 1.5, 1.0):.1%}")
    said = element("span", f"{part:.0%} of the bound", class_="hidden")
    return element("div", filled, element("b"), said, class_="gauge over" if over else "gauge")


def task_grid(report: ValidationReport) -> Grid | None:
    """Return task metrics of both models; None without any."""
    rows = [(t.name, figure(t.original, 4), figure(t.rewritten, 4)) for t in report.tasks]
    return Grid(columns("task", ">original", ">rewritten"), rows) if rows else None


def output_grid(report: ValidationReport) -> Grid:
    """Return every output, pooled over the inputs of each group."""
    rows = [
        (o.output, group, *_measures(o), state(o.ok) if report.judged == "noise floor" else "")
        for group, outputs in report.summary.items()
        for o in outputs
    ]
    return Grid(columns("output", "inputs", *_MEASURES, ""), rows)


_MEASURES = (">max error", ">× noise", ">rel", ">SQNR dB", ">cos", ">KL", ">top-1")


def _measures(output: OutputReport) -> tuple[Cell, ...]:
    d = output.distance
    if d is None:
        equal = output.agreement == 1.0
        return ("equal" if equal else f"{1 - (output.agreement or 0.0):.2%} differ", *[""] * 6)
    error = f"{d.pattern} NaN/inf" if d.pattern else figure(d.max_abs)
    factor = figure(output.factor) if output.factor is not None else ""
    return (error, factor, figure(d.rel), figure(d.sqnr), similarity(d.cos), figure(d.kl), similarity(d.top1))


def step_grid(report: ValidationReport) -> Grid | None:
    """Return both models against the source; None without one."""
    rows = [
        (s.name, n, figure(d.max_abs), figure(d.rel), similarity(d.cos))
        for s in report.steps
        for n, d in s.outputs.items()
    ]
    return Grid(columns("step", "output", ">max error", ">rel", ">cos"), rows) if rows else None


def case_grid(report: ValidationReport) -> Grid:
    """Return every input, with a summary of what failed and what was skipped."""
    rows: list[Sequence[Cell]] = []
    for case in report.cases:
        rows += _case(case, report.judged == "noise floor")
    failed = sum(not c.ok for c in report.cases)
    skipped = sum(c.ok and c.error is not None for c in report.cases)
    told = [f"{len(report.cases)} inputs"]
    told += [f"{failed} failed"] if failed else []
    told += [f"{skipped} skipped"] if skipped else []
    return Grid(columns("input", "output", *_MEASURES, ""), rows, summary=", ".join(told))


def _case(case: CaseReport, judged: bool) -> Iterator[Sequence[Cell]]:
    if case.error is not None:
        yield (case.name, case.error, *[""] * len(_MEASURES), state(None if case.ok else False))
    for o in case.outputs:
        yield (case.name, o.output, *_measures(o), state(o.ok) if judged else "")
