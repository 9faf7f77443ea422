"""Quality against speed, every form a curve, the original at 1."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.trained.cases import Case
from benchmarks.trained.records import Measurement

__all__ = ["plot"]


def plot(found: Mapping[Case, Measurement], metric: str, path: Path) -> None:
    """Write a plot as SVG: a panel per workload, a curve per form, its better half of the layers dashed.

    Raises
    ------
    ModuleNotFoundError
        If matplotlib is not installed (the extra ``plots``).
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = metric  # the same figures give the same file
    from matplotlib import pyplot

    workloads = list(dict.fromkeys(case.workload for case in found))
    figure, panels = pyplot.subplots(
        1, len(workloads), figsize=(5 * len(workloads), 4.2), squeeze=False, constrained_layout=True
    )
    families = list(dict.fromkeys(case.family for case in found))
    for panel, workload in zip(panels[0], workloads, strict=True):
        for at, family in enumerate(families):
            for select, style in (("all", "-"), ("best=0.5", "--")):
                points = [
                    (m.speed, m.quality[metric])
                    for case, m in found.items()
                    if (case.workload, case.family, case.select) == (workload, family, select)
                    and m.speed is not None
                ]
                if points:
                    label = family if select == "all" else None
                    panel.plot(*zip(*points, strict=True), style, marker="o", color=f"C{at}", label=label)
        originals = [m.original[metric] for c, m in found.items() if c.workload == workload and m.original]
        if originals:
            panel.plot([1], originals[:1], marker="*", markersize=14, color="black", linestyle="none")
        panel.axvline(1, color="grey", linewidth=0.5)
        panel.set(title=workload, xlabel="times faster, end to end", ylabel=metric)
        panel.set_yscale("symlog", linthresh=1e-3) if metric == "KL" else None
    panels[0][0].legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
