"""What a page says about sites: errors, depth, statistics of attention and its maps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from rewriter.report.charts import Plot, Series, bars, depth
from rewriter.report.grids import Cell, Grid, columns, counted, state
from rewriter.report.markup import element
from rewriter.report.png import data_uri
from rewriter.report.text import figure
from rewriter.verify.attention_statistics import AttentionStatistics
from rewriter.verify.per_site import AttentionMap, PerSite, SiteRecord, StretchRecord

__all__ = ["attention_maps", "depth_plot", "faults", "site_grid", "statistic_grid"]

PICTURES = 8
"""Sites whose attention is shown where nobody chose any: the worst."""

PIXELS = 96
"""Sides of a map: larger ones are averaged over blocks."""

FULL = 0.995
"""Quantile of the weights that gets the full colour."""


def site_grid(recorded: PerSite | None) -> Grid | None:
    """Return every site with its errors; None where nothing was recorded."""
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
    lead = f"{pairing}Measured on {counted(recorded.cases, 'input')}."
    wanted = columns("site", "form", ">alone", ">as it runs", "error by head", "entropy", "")
    return Grid(wanted, rows, lead=lead)


def faults(recorded: PerSite | None) -> list[str]:
    """Return a sentence for every fault that lies between sites."""
    stretches = recorded.stretches if recorded is not None else ()
    return [_fault(s) for s in stretches if s.ok is False]


def _fault(found: StretchRecord) -> str:
    error = figure(found.distance.max_abs if found.distance is not None else None)
    place = f"Between {found.after or 'the inputs'} and {found.before or 'the outputs'}"
    first = f"; the first value that is off is {found.value}" if found.value is not None else ""
    return f"{place}: the largest error is {error}, by rounding it would be {figure(found.tolerance)}{first}."


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
    return state(site.ok)


def _heads(site: SiteRecord) -> Cell:
    error = site.local or site.accumulated
    if error is None or not any(error.heads):
        return ""
    names = [f"head {k}" for k in range(len(error.heads))]
    worst = max(range(len(names)), key=lambda k: _finite(error.heads[k]))
    label = f"{len(names)} heads, largest {figure(error.heads[worst])} at {names[worst]}"
    return bars(error.heads, names, label)


def depth_plot(recorded: PerSite | None) -> Plot | None:
    """Return the errors of sites in the order of the graph; None where there is nothing to see."""
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


def statistic_grid(recorded: PerSite | None) -> Grid | None:
    """Return what attention looks like at every site, before and after; None where that is not known."""
    sites = [s for s in recorded.sites if s.before is not None] if recorded is not None else []
    rows = [(s.site, *(_pair(s, key) for key in _STATISTICS)) for s in sites]
    return Grid(columns("site", *_STATISTICS.values()), rows) if rows else None


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


def attention_maps(recorded: PerSite | None) -> Iterator[Mapping[str, str]]:
    """Yield pictures of the heads that were chosen, else of the worst sites.

    Each has a ``name``, and addresses ``before`` and ``after``.
    """
    sites = [s for s in recorded.sites if s.maps] if recorded is not None else []
    worst = sorted(sites, key=_badness, reverse=True)
    shown = worst if recorded is not None and recorded.chosen else worst[:PICTURES]
    for site in sites:
        for one in site.maps if site in shown else ():
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


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf
