"""A table of the sites of two models: errors, and what attention weights look like before and after."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.text import Text

from rewriter.report.console import spaced, table, verdict_line
from rewriter.report.text import figure
from rewriter.verify.per_site import PerSite, SiteError, SiteRecord

__all__ = ["sites_view"]


def sites_view(found: PerSite) -> RenderableType:
    """Return one row per site: its error alone and as it runs, its worst head, what its weights look like."""
    looked = any(site.before is not None for site in found.sites)
    weights = (">entropy", ">top-8") if looked else ()
    columns = ("site", "form", ">alone", ">worst head", ">as it runs", *weights, "")
    view = table(*columns, title="Sites in both models", give=["site", "form"])
    for site in found.sites:
        view.add_row(
            site.site,
            Text(site.form or ("as it was" if site.paired_by else "not found")),
            _relative(site.local),
            _worst_head(site.local or site.accumulated),
            _relative(site.accumulated),
            *((_change(site, "entropy"), _change(site, "top_mass")) if looked else ()),
            _state(site, found.blamed),
        )
    parts: list[RenderableType] = [view]
    for stretch in found.stretches:
        if stretch.ok is False:
            where = f"before {stretch.before}" if stretch.before else f"after {stretch.after}"
            error = stretch.distance.max_abs if stretch.distance is not None else None
            size = f"error {figure(error)}, {figure(stretch.tolerance)} by rounding; " if error else ""
            parts.append(Text(f"{where}: {size}first at {stretch.value}", style="red"))
    parts.append(
        Text(f"{found.pairing}; {found.cases} inputs; errors are ‖new - original‖ / ‖original‖", "dim")
    )
    if found.blamed:
        parts.append(verdict_line(False, f"to blame: {', '.join(found.blamed)}"))
    return spaced(parts)


def _relative(error: SiteError | None) -> str:
    return "" if error is None else figure(error.distance.rel)


def _worst_head(error: SiteError | None) -> str:
    if error is None or not error.heads or not max(error.heads):
        return ""
    head = max(range(len(error.heads)), key=error.heads.__getitem__)
    return f"{head}: {figure(error.heads[head])}"


def _change(site: SiteRecord, name: str) -> str:
    """Return the means over heads, before and after."""
    if site.before is None or site.after is None:
        return ""
    before, after = (getattr(s, name) for s in (site.before, site.after))
    return " → ".join(f"{sum(x) / len(x):.2f}" for x in (before, after))


def _state(site: SiteRecord, blamed: Sequence[str]) -> Text:
    if site.site in blamed:
        return Text("✗", style="red")
    return Text("✓", style="green") if site.ok else Text("")
