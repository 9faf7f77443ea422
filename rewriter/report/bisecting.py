"""Tables for ``rewriter bisect``: what was tried, and which sites to revert."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.text import Text

from rewriter.report.console import spaced, table, verdict_line
from rewriter.report.sites_table import sites_view
from rewriter.report.text import figure
from rewriter.verify.bisect import Attempt, BisectReport
from rewriter.verify.reproduce import Reproduction

__all__ = ["bisect_view"]

SHOWN = 12
"""Attempts that are listed."""

SPELT = 3
"""Sites of a set that is always written out."""


def bisect_view(
    report: BisectReport, written: Reproduction | None = None, plan: str | None = None
) -> RenderableType:
    """Return what was tried, the verdict, and what was written."""
    columns = ("as in the original", "meets", "what was measured")
    view = table(*columns, title=_title(report), give=[columns[0], columns[2]])
    for attempt in _telling(report):
        mark = Text("✓", "green") if attempt.ok else Text("✗", "red")
        view.add_row(Text(_reverted(attempt, report)), mark, Text(attempt.verdict))
    parts: list[RenderableType] = [view]
    left = len(report.attempts) - SHOWN
    if left > 0:
        parts.append(Text(f"and {left} more attempts", style="dim"))
    if not report.ok:
        parts.append(sites_view(report.per_site))
    parts.append(verdict_line(report.ok, report.verdict))
    if written is not None:
        rel = "" if written.distance is None else f", which differ by {figure(written.distance.rel)}"
        nodes = " and ".join(map(str, written.nodes))
        parts.append(Text(f"{written.unit} alone: {nodes} nodes{rel}"))
    if plan is not None:
        parts.append(Text(f"the plan without what is to be reverted is in {plan}"))
    return spaced(parts)


def _title(report: BisectReport) -> str:
    return f"{report.original} against {report.rewritten}"


def _reverted(attempt: Attempt, report: BisectReport) -> str:
    """Return the set of an attempt, in a few words where it is all there is."""
    sites = {site.site for site in report.per_site.sites}
    reverted = set(attempt.reverted)
    if len(reverted) < SPELT or not sites <= reverted:
        return ", ".join(attempt.reverted) or "nothing"
    return f"all {len(sites)} sites" + (", and all between them" if reverted > sites else "")


def _telling(report: BisectReport) -> Sequence[Attempt]:
    """Return the first attempts, and the one that is the result."""
    first = list(report.attempts[:SHOWN])
    if report.after is not None and report.after not in first:
        first[-1:] = [report.after]
    return first
