"""Tables for a terminal. Every function returns what `rich` prints; none prints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rewriter.report.text import figure, heads, share
from rewriter.verify.binding import Binding
from rewriter.verify.validation import OutputReport, ValidationReport

__all__ = ["drawing_view", "inspection_view", "spaced", "table", "validation_view", "verdict_line"]


LONGEST = 24
"""Characters of a symbolic length in a table."""

LONGEST_TITLE = 60
"""Characters of a title that is not broken where the table below it is narrower."""

FEW = 8
"""Ids that are listed where many sites have the same."""


def table(*columns: str, title: str | None = None, give: Sequence[str] = ()) -> Table:
    """Return an empty table.

    Parameters
    ----------
    *columns
        Headings; one that starts with ``>`` is aligned right.
    title
        Above it.
    give
        The columns that wrap when the terminal is narrow; the last one by default. The others keep
        their width.
    """
    made = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title=title,
        title_justify="left",
        title_style="bold",
        min_width=min(len(title or ""), LONGEST_TITLE),
    )
    yields = give or columns[-1:]
    for column in columns:
        name = column.lstrip(">")
        made.add_column(
            name,
            justify="right" if column.startswith(">") else "left",
            no_wrap=name not in yields,
            overflow="ellipsis" if name == "anchor" else "fold",
            min_width=6 if name in yields else None,
        )
    return made


def spaced(parts: Sequence[RenderableType]) -> Group:
    """Return the parts with an empty line around every table."""
    lines: list[RenderableType] = []
    for part in parts:
        if isinstance(part, Table):
            lines += ["", part] if lines else [part]
        else:
            lines += ["", part] if lines and isinstance(lines[-1], Table) else [part]
    return Group(*lines)


def verdict_line(ok: bool, text: str) -> Text:
    """Return the verdict: a mark that reads without colour, and the sentence."""
    return Text.assemble(("✓ ", "bold green") if ok else ("✗ ", "bold red"), text)


def inspection_view(
    record: Mapping[str, Any], shares: Mapping[str, float] | None = None, sizes: Binding | None = None
) -> RenderableType:
    """Return the tables of ``inspect``: sites with their facts, gates, and near-misses with reasons.

    Parameters
    ----------
    record
        What `rewriter.report.inspection.inspection` returns.
    shares, sizes
        What `rewriter.report.cost_share.cost_shares` returns.
    """
    sites, refused = record["sites"], record["refused"]
    title = Text(f"{record['model']}", style="bold")
    title.append(
        f"  {record['format']}, {_count(record['nodes'], 'node')}, {_count(len(sites), 'site')},"
        f" {_count(len(refused), 'near-miss', 'near-misses')}"
        + (f", {_count(len(record['blocks']), 'block')}" if record["blocks"] else ""),
        style="dim",
    )
    if any(r["missed"] for r in refused):
        title.append(f", {record['coverage']:.1f}% coverage", style="dim")
    parts: list[RenderableType] = [title]
    if sites:
        parts.append(_sites(sites, shares or {}))
    if sites and shares:
        at = " when " + ", ".join(f"{n}={k}" for n, k in sizes.items()) if sizes else ""
        parts.append(Text(f"cost: share of the arithmetic of all contractions{at}", style="dim"))
    besides = _besides(sites)
    if besides is not None:
        parts.append(besides)
    if record["blocks"]:
        parts.append(_blocks(record["blocks"]))
    if record["fusion"]["topology"] is not None:
        parts.append(_fusion(record["fusion"]))
    if refused:
        parts.append(_refused(refused))
    if not sites and not refused and not record["blocks"]:
        parts.append(Text("Nothing here looks like attention."))
    return spaced(parts)


def drawing_view(lines: Sequence[str]) -> RenderableType:
    """Return a drawing as it is: nothing in it is markup, and no line is wrapped."""
    return Text("\n".join(lines), no_wrap=True, overflow="crop")


def _refused(refused: Iterable[Mapping[str, Any]]) -> Table:
    columns = ("near-miss", "nearest to", "stopped at", "why it is not a site")
    view = table(*columns, title="Left alone", give=["near-miss", "why it is not a site"])
    for r in refused:
        at = f" (at {r['at']})" if r["at"] is not None else ""
        stage = Text(r["reached"], style="yellow" if r["missed"] else "")
        view.add_row(Text(r["anchor"]), r["nearest"], stage, Text(r["reason"] + at))
    return view


def _blocks(blocks: Iterable[Mapping[str, Any]]) -> Table:
    columns = ("block", "mechanism", ">shape", "weights along", "besides", "output")
    view = table(*columns, title="Gates and fusion blocks", give=["besides", "output"])
    for b in blocks:
        view.add_row(
            b["id"],
            b["mechanism"] or "",
            " × ".join(_length(n) for n in b["shape"]),
            "axes " + ", ".join(map(str, b["axes"])) if b["axes"] else "no axis",
            ", ".join(b["traits"]),
            Text(b["output"]),
        )
    return view


def _fusion(fusion: Mapping[str, Any]) -> RenderableType:
    """Return how streams meet: a line, and a table of the places where there are such."""
    line = Text(f"{fusion['topology']} of {', '.join(fusion['streams'])}")
    if not fusion["links"]:
        return line
    view = table("link", "streams", "sites", "output", title="Streams", give=["output"])
    for link in fusion["links"]:
        between = Text(" and ".join(link["streams"]))
        view.add_row(link["kind"], between, ", ".join(link["sites"]), Text(link["output"]))
    return Group(line, view)


def _besides(sites: Iterable[Mapping[str, Any]]) -> Table | None:
    """Return what sites have besides the plain formula, or None: traits, constants, readers of the inside."""
    having: dict[str, list[str]] = {}
    for site in sites:
        found = list(site["traits"])
        found += [f"constant {', '.join(site['constant'])}"] if site["constant"] else []
        found += ["scores or weights read elsewhere"] if site["consumers"] else []
        for what in found:
            having.setdefault(what, []).append(site["id"])
    view = table("besides", "sites")
    for what, ids in having.items():
        shown = ", ".join(ids[:FEW]) + (f" and {len(ids) - FEW} more" if len(ids) > FEW else "")
        view.add_row(what, shown)
    return view if having else None


def _sites(sites: Iterable[Mapping[str, Any]], shares: Mapping[str, float]) -> Table:
    columns = ("site", ">heads", "queries × keys", ">dims", ">scale", "mask", ">cost", "anchor")
    view = table(*columns, title="Sites", give=["queries × keys", "anchor"])
    for s in sites:
        share_of_all = shares.get(s["id"])
        view.add_row(
            s["id"],
            heads(s["heads"], s["kv_heads"]),
            f"{_length(s['query_length'])} × {_length(s['key_length'])}",
            str(s["qk_dim"]) if s["qk_dim"] == s["v_dim"] else f"{s['qk_dim']}/{s['v_dim']}",
            figure(s["scale"], 4) if isinstance(s["scale"], int | float) else str(s["scale"]),
            s["mask"],
            "" if share_of_all is None else f"{share_of_all:.1%}",
            Text(s["anchor"]),
        )
    return view


def validation_view(report: ValidationReport, sites: bool = True) -> RenderableType:
    """Return the tables of ``validate``: the measures per group, inputs that failed, and the verdict.

    Parameters
    ----------
    report
        What was found.
    sites
        Whether to list what the rewritten model says about its sites.
    """
    parts: list[RenderableType] = [_measures(report)]
    if sites and report.sites:
        parts.append(_applied(report))
    if report.steps:
        parts.append(_steps(report))
    if report.tasks:
        parts.append(_tasks(report))
    troubled = [c for c in report.cases if not c.ok or c.error is not None]
    if troubled:
        columns = ("input", "what happened")
        view = table(*columns, title="Inputs that failed or were skipped", give=columns)
        for case in troubled:
            view.add_row(Text(case.name), Text(case.error or _failures(case.outputs)))
        parts.append(view)
    parts += [Text(note, style="dim") for note in report.notes]
    for outcome in report.budget:
        parts.append(verdict_line(outcome.ok, str(outcome)))
    parts.append(verdict_line(report.ok, _short(report)))
    if not report.ok and report.judged == "noise floor":
        parts += [Text(line, style="dim") for line in _tolerances_that_pass(report)]
    return spaced(parts)


def _short(report: ValidationReport) -> str:
    """Return the verdict without the budgets that stand above it."""
    said = "; ".join(str(o) for o in report.budget if o.ok == report.ok)
    return report.verdict.removesuffix(f": {said}") if said else report.verdict


def _tolerances_that_pass(report: ValidationReport) -> Iterator[str]:
    """Yield, for each output that is over its tolerance, what would not be too small on any input."""
    found: dict[str, list[OutputReport]] = {}
    for output in (o for outputs in report.summary.values() for o in outputs if o.distance is not None):
        found.setdefault(output.output, []).append(output)
    for name, outputs in found.items():
        distances = [o.distance for o in outputs if o.distance is not None]
        if all(o.ok for o in outputs) or any(d.pattern for d in distances):
            continue
        least = (max(getattr(d, key) for d in distances) for key in ("max_abs", "elem_rel", "tol"))
        absolute, relative, both = map(figure, least)
        factor = max(o.factor or 0.0 for o in outputs)
        yield (
            f"{name} would pass with atol={absolute}, or rtol={relative}, or atol=rtol={both};"
            f" that is {figure(factor)} times the noise floor"
        )


def _tasks(report: ValidationReport) -> Table:
    view = table("task", ">original", ">rewritten", ">change", title="Tasks", give=["task"])
    for t in report.tasks:
        view.add_row(
            Text(t.name), figure(t.original, 4), figure(t.rewritten, 4), figure(t.rewritten - t.original)
        )
    return view


def _measures(report: ValidationReport) -> Table:
    """Return what counts: the tolerance for what claims to be exact, similarity for what does not."""
    title = f"{report.original} against {report.rewritten}"
    held = report.judged == "noise floor"
    columns = (">allowed", "") if held else (">cos", ">KL", ">top-1")
    first = ("inputs", "output", ">max error", ">noise", ">SQNR dB")
    view = table(*first, *columns, title=title, give=["output"])
    for group, outputs in report.summary.items():
        count = sum(c.group == group and c.error is None for c in report.cases)
        for output in outputs:
            name, d = Text(output.output), output.distance
            if d is None:
                view.add_row(
                    f"{count} {group}",
                    name,
                    _agreement(output),
                    "",
                    "",
                    *(("equal", _mark(output.ok)) if held else ()),
                )
                continue
            error = f"{d.pattern} NaN/inf" if d.pattern else figure(d.max_abs)
            rest = (
                (figure(output.tolerance), _mark(output.ok))
                if held
                else (share(d.cos), figure(d.kl), share(d.top1))
            )
            floor = figure(output.noise.max_abs) if output.noise is not None else ""
            view.add_row(f"{count} {group}", name, error, floor, figure(d.sqnr), *rest)
    return view


def _agreement(output: OutputReport) -> str:
    return "equal" if output.agreement == 1.0 else f"{1 - (output.agreement or 0.0):.2%} differ"


def _mark(ok: bool) -> Text:
    return Text("✓", style="green") if ok else Text("✗", style="red")


def _applied(report: ValidationReport) -> Table:
    view = table("site", "form", "fidelity", title="Rewritten sites", give=["site", "form"])
    for site in report.sites:
        view.add_row(site.site, Text(site.form), site.fidelity)
    return view


def _steps(report: ValidationReport) -> Table:
    view = table("step", "output", ">max error", ">rel", ">cos", title="Three ways", give=["output"])
    for step in report.steps:
        for name, d in step.outputs.items():
            view.add_row(step.name, Text(name), figure(d.max_abs), figure(d.rel), share(d.cos))
    return view


def _failures(outputs: Sequence[OutputReport]) -> str:
    return "; ".join(f"{o.output}: {_failure(o)}" for o in outputs if not o.ok)


def _failure(output: OutputReport) -> str:
    if output.distance is None:
        return _agreement(output)
    if output.distance.pattern:
        return f"{output.distance.pattern} NaN/inf in one model only"
    return f"max error {figure(output.distance.max_abs)}"


def _length(size: object) -> str:
    """Return a length; an expression too long for a table is in the JSON only."""
    return str(size) if len(str(size)) <= LONGEST else "dynamic"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
