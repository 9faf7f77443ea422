"""What a rewrite did at every site, as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from rewriter.report.console import spaced, table
from rewriter.report.cost_share import LENGTH
from rewriter.report.text import figure, share_of
from rewriter.verify.binding import base_symbols, bound_size

if TYPE_CHECKING:
    from rewriter.record import Applied
    from rewriter.rules import Fused

__all__ = ["rewriting_view", "work"]


def rewriting_view(sites: Iterable[Applied], fused: Iterable[Fused] = ()) -> RenderableType:
    """Return the table of sites: form, error measured at the site alone, and what it costs now.

    Sites that were left as they were follow, each with the reason; then what rules have fused, and what they
    have not.
    """
    sites = list(sites)
    done = [s for s in sites if s.committed]
    left = [s for s in sites if not s.committed]
    parts: list[RenderableType] = []
    if done:
        view = table(
            "site",
            "form",
            "fidelity",
            ">error",
            "on",
            ">work",
            "",
            title=f"{len(done)} of {len(sites)} sites rewritten",
            give=["form"],
        )
        for s in done:
            mark = Text("✓", style="green") if s.check is not None else Text("unverified", style="yellow")
            view.add_row(
                s.site, Text(s.form), s.fidelity.value, figure(s.error), s.measured_on or "", work(s), mark
            )
        parts.append(view)
        parts.append(
            Text(
                "error: relative, at the site alone; work: operations against dense attention,"
                f" dynamic lengths {LENGTH}",
                style="dim",
            )
        )
        notes = Counter(s.note for s in done if s.note is not None)
        parts += [Text(f"{n} site{'s' * (n > 1)}: {note}", style="yellow") for note, n in notes.items()]
    if left:
        columns = ("site", "form", "why it was left as it was")
        view = table(*columns, title="Left as they were", give=columns[1:])
        for s in left:
            view.add_row(s.site, Text(s.form), Text(s.reason or ""))
        parts.append(view)
    return spaced([*parts, *_fused_views(list(fused))])


def _fused_views(fused: list[Fused]) -> Iterable[RenderableType]:
    done = Counter(f.rule for f in fused if f.committed)
    left = Counter((f.rule, f.reason or "") for f in fused if not f.committed)
    if done:
        view = table("rule", ">values", "", title=f"{done.total()} of {len(fused)} values fused")
        for rule, count in done.items():
            view.add_row(rule, str(count), Text("✓", style="green"))
        yield view
        gains = Counter(f"{f.rule}: {f.gain}" for f in fused if f.committed and f.gain)
        for gain, count in gains.items():
            yield Text(f"{gain}, {count} times" if count > 1 else gain, style="dim")
    if left:
        view = table("rule", ">values", "why they were left as they were", title="Not fused")
        for (rule, reason), count in left.items():
            view.add_row(rule, str(count), Text(reason))
        yield view


def work(site: Applied) -> str:
    """Return the operations of a site in its form over those of dense attention, in percent, if known."""
    before, after = site.before.flops, site.after.flops
    if before == after and site.after.time is None:
        return "–"  # how many tokens are left is known where the program runs
    binding = dict.fromkeys(base_symbols([before, after]), LENGTH)
    try:
        whole, part = bound_size(before, binding), bound_size(after, binding)
    except ValueError:
        return "–"
    return share_of(part / whole) if whole else "–"
