"""Tables for a terminal. Every function returns what `rich` prints; none prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rewriter.report.text import figure, heads, share
from rewriter.verify.validation import OutputReport, ValidationReport

__all__ = ["inspection_view", "table", "validation_view", "verdict_line"]


def table(*columns: str | tuple[str, str], title: str | None = None) -> Table:
    """Return an empty table; a column may be ``(name, "right")``, ``"keep"`` (one line) or ``"fold"``."""
    made = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    for column in columns:
        name, kind = (column, "left") if isinstance(column, str) else column
        if kind == "fold":
            made.add_column(name, overflow="fold")
        else:
            made.add_column(name, justify="right" if kind == "right" else "left", no_wrap=kind == "keep")
    return made


def verdict_line(ok: bool, text: str) -> Text:
    """Return the verdict: a mark that reads without colour, and the sentence."""
    line = Text("✓ " if ok else "✗ ", style="bold green" if ok else "bold red")
    line.append(text, style="default")
    return line


def inspection_view(record: Mapping[str, Any]) -> RenderableType:
    """Return the tables of ``inspect``: sites with their facts, and near-misses with reasons."""
    sites, refused = record["sites"], record["refused"]
    title = Text(f"{record['model']}", style="bold")
    title.append(
        f"  {record['format']}, {_count(record['nodes'], 'node')}, {_count(len(sites), 'site')},"
        f" {_count(len(refused), 'near-miss', 'near-misses')}",
        style="dim",
    )
    parts: list[RenderableType] = [title]
    if sites:
        view = table(
            ("site", "keep"),
            ("heads", "right"),
            ("queries × keys", "keep"),
            ("dims", "right"),
            ("scale", "right"),
            "mask",
            ("nodes", "right"),
            ("anchor", "fold"),
        )
        for s in sites:
            view.add_row(
                s["id"],
                heads(s["heads"], s["kv_heads"]),
                f"{s['query_length']} × {s['key_length']}",
                str(s["qk_dim"]) if s["qk_dim"] == s["v_dim"] else f"{s['qk_dim']}/{s['v_dim']}",
                figure(s["scale"], 4) if isinstance(s["scale"], int | float) else str(s["scale"]),
                s["mask"],
                str(s["region_nodes"]),
                Text(s["anchor"]),
            )
        parts.append(view)
    if refused:
        view = table(("near-miss", "fold"), "why it is not a site", title="Left alone")
        for r in refused:
            view.add_row(Text(r["anchor"]), Text(r["reason"]))
        parts.append(view)
    if not sites and not refused:
        parts.append(Text("Nothing here looks like attention."))
    return Group(*parts)


def validation_view(report: ValidationReport) -> RenderableType:
    """Return the tables of ``validate``: the verdict, the measures per group, and cases that failed."""
    parts: list[RenderableType] = [_measures(report)]
    if report.sites:
        parts.append(_applied(report))
    if report.steps:
        parts.append(_steps(report))
    troubled = [c for c in report.cases if not c.ok or c.error is not None]
    if troubled:
        view = table("input", "what happened", title="Inputs that failed or were skipped")
        for case in troubled:
            view.add_row(Text(case.name), Text(case.error or _failures(case.outputs)))
        parts.append(view)
    for outcome in report.budget:
        parts.append(verdict_line(outcome.ok, str(outcome)))
    parts.append(verdict_line(report.ok, report.verdict))
    return Group(*parts)


def _measures(report: ValidationReport) -> Table:
    title = f"{report.original} against {report.rewritten}"
    view = table(
        "inputs",
        ("output", "fold"),
        ("max error", "right"),
        ("tolerance", "right"),
        ("rel", "right"),
        ("SQNR dB", "right"),
        ("cos", "right"),
        ("KL", "right"),
        ("top-1", "right"),
        "",
        title=title,
    )
    for group, outputs in report.summary.items():
        count = sum(c.group == group and c.error is None for c in report.cases)
        for output in outputs:
            view.add_row(
                f"{count} {group}", Text(output.output), *_row(output), _mark(output.ok, report.judged)
            )
    return view


def _row(output: OutputReport) -> Iterable[str]:
    d = output.distance
    if d is None:
        equal = "equal" if output.agreement == 1.0 else f"{1 - (output.agreement or 0.0):.2%} differ"
        return (equal, "equal", "", "", "", "", "")
    error = f"{d.pattern} NaN/inf" if d.pattern else figure(d.max_abs)
    return (
        error,
        figure(output.tolerance),
        figure(d.rel),
        figure(d.sqnr),
        share(d.cos),
        figure(d.kl),
        share(d.top1),
    )


def _mark(ok: bool, judged: str) -> Text:
    if judged != "noise floor":
        return Text("")
    return Text("✓", style="green") if ok else Text("✗", style="red")


def _applied(report: ValidationReport) -> Table:
    view = table(("site", "keep"), "form", "fidelity", title="Rewritten sites")
    for site in report.sites:
        view.add_row(site.site, Text(site.form), site.fidelity)
    return view


def _steps(report: ValidationReport) -> Table:
    view = table(
        "step",
        ("output", "fold"),
        ("max error", "right"),
        ("rel", "right"),
        ("cos", "right"),
        title="Three ways",
    )
    for step in report.steps:
        for name, d in step.outputs.items():
            view.add_row(step.name, Text(name), figure(d.max_abs), figure(d.rel), share(d.cos))
    return view


def _failures(outputs: Sequence[OutputReport]) -> str:
    return "; ".join(
        f"{o.output}: " + (f"max error {figure(o.distance.max_abs)}" if o.distance else "elements differ")
        for o in outputs
        if not o.ok
    )


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
