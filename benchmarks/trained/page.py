"""Measurements as a page of the documentation, with a plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from benchmarks.trained.cases import Case
from benchmarks.trained.records import Measurement

__all__ = ["page"]


def page(model: str, found: Mapping[Case, Measurement], metric: str, cases: int) -> str:
    """Return the page of one model in Markdown.

    Parameters
    ----------
    model
        First part of its workloads' names.
    found
        What was measured.
    metric
        The figure of the plot.
    cases
        How many there are to measure.
    """
    parts = [_head(model, found, metric, cases)]
    for workload in dict.fromkeys(case.workload for case in found):
        parts.append(_table(workload, {c: m for c, m in found.items() if c.workload == workload}))
    return "\n".join("\n".join(part).rstrip() + "\n" for part in map(list, parts))


def _head(model: str, found: Mapping[Case, Measurement], metric: str, cases: int) -> Iterator[str]:
    yield f"# {model}"
    yield ""
    left = "" if len(found) == cases else f" {len(found)} of {cases} cases are measured."
    yield f"Written by `python -m benchmarks.trained --models {model}`; never edited by hand.{left}"
    yield ""
    yield (
        "Trained weights, nothing fitted. Every form is measured on all layers and on the better half, "
        "ranked on data that is not used for the score. *Speed* is that of the whole model against the "
        "original with fused attention, *attention* that of one attention call against the fused one, "
        "*promised* how many times fewer operations the form's cost counts, *expected* how many times faster "
        "that makes it by the time of each kind of work (docs/costs.md); all take turns in one process. "
        "*Memory* is the growth of the process while the model runs, against the original."
    )
    yield ""
    for notes in dict.fromkeys(m.notes.partition(", load")[0] for m in found.values()):
        yield f"{notes}."
    loads = [float(m.notes.rpartition(" ")[2]) for m in found.values()]
    yield f"Load of the machine when a case ended: {min(loads):.1f} to {max(loads):.1f}."
    yield ""
    yield f"![{metric} against speed]({model}.svg)"


def _table(workload: str, found: Mapping[Case, Measurement]) -> Iterator[str]:
    done = [m for m in found.values() if m.refused is None]
    metrics = list(dict.fromkeys(key for m in done for key in m.quality))
    yield f"## {workload}"
    yield ""
    columns = ["form", "layers", *metrics, "attention", "promised", "expected", "speed", "spread", "memory"]
    yield f"| {' | '.join(columns)} |"
    yield "| --- | --- |" + " ---: |" * (len(columns) - 2)
    if done:
        original = [f"{done[0].original[m]:.4g}" if m in done[0].original else "" for m in metrics]
        yield f"| {' | '.join(['original', '', *original, '1', '1', '1', '1', '', '1'])} |"
    for case, m in found.items():
        if m.refused is None:
            yield f"| {' | '.join(_row(case, m, metrics))} |"
    yield ""
    yield from _refused(found)


def _row(case: Case, m: Measurement, metrics: Sequence[str]) -> list[str]:
    low, high = m.spread or (0.0, 0.0)
    figures = [f"{m.quality[key]:.4g}" if key in m.quality else "" for key in metrics]
    promised = None if m.attention is None else m.promised  # of one call: a form that spans sites is none
    ratios = [_ratio(x) for x in (m.attention, promised, m.expected, m.speed)]
    layers = f"{m.sites[0]} of {m.sites[1]}" if m.sites[0] != m.sites[1] else f"{m.sites[0]}"
    return [f"`{case.form}`", layers, *figures, *ratios, f"{low:.2f}-{high:.2f}", _ratio(m.memory)]


def _ratio(x: float | None) -> str:
    return "" if x is None else f"{x:.2f}"


def _refused(found: Mapping[Case, Measurement]) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for case, m in found.items():
        if m.refused is not None and case.select == "all":
            reasons.setdefault(m.refused, []).append(f"`{case.form}`")
    for reason, forms in reasons.items():
        yield f"Refused: {', '.join(forms)}: {reason}"
        yield ""
