"""What ``bench`` measured, as tables and as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from rewriter.report.console import spaced, table, verdict_line
from rewriter.report.text import amount, figure, milliseconds, times
from rewriter.verify.bench import BenchReport, Crossover, Row, SizeReport
from rewriter.verify.intervals import Interval

__all__ = ["bench_record", "bench_view"]


def bench_record(report: BenchReport, validations: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was measured as plain values.

    Parameters
    ----------
    report
        The timings.
    validations
        Verdict by model, as plain values.
    """
    return {
        "base": report.models[0],
        "models": list(report.models),
        "validation": dict(validations),
        "sizes": [s.to_dict() for s in report.sizes],
        "crossovers": [
            {
                "model": c.model,
                "dimension": c.dimension,
                "verdict": c.verdict,
                "length": c.length,
                "between": list(c.between) if c.between is not None else None,
            }
            for c in report.crossovers
        ],
    }


def bench_view(report: BenchReport) -> RenderableType:
    """Return one table per size, where one model becomes faster than the first, and what was refused."""
    parts: list[RenderableType] = [_table(s, report) for s in report.sizes]
    confident = [r.speed for s in report.sizes for r in s.rows if r.speed is not None]
    if confident:
        least = min(c.confidence for c in confident)
        rounds = min(len(r.seconds) for s in report.sizes for r in s.rows if r.seconds)
        parts.append(
            Text(
                f"faster: median of the ratios of {rounds} interleaved rounds, and the interval that holds it"
                f" with {least:.0%} confidence (order statistics)",
                style="dim",
            )
        )
    parts += [Text(f"{r.model}, {s.name}: {r.error}") for s in report.sizes for r in s.rows if r.error]
    parts += [Text(_crossing(c)) for c in report.crossovers]
    parts += [
        verdict_line(False, f"{model}: no speed-up is printed, as it is not the same model: {verdict}")
        for model, verdict in report.red.items()
    ]
    return spaced(parts)


def _table(size: SizeReport, report: BenchReport) -> RenderableType:
    memory = any(r.peak is not None for r in size.rows)
    columns = ["model", ">median", ">interval", ">faster", ">interval "]
    view = table(*columns, *([">peak memory"] if memory else []), title=size.name, give=["model"])
    for row in size.rows:
        cells = _cells(row, report)
        view.add_row(Text(row.model), *cells, *([_memory(row)] if memory else []))
    return view


def _cells(row: Row, report: BenchReport) -> tuple[str, str, str, str]:
    middle = row.middle
    if middle is None:
        return ("not run", "", "", "")
    timed = (milliseconds(middle.median), f"{milliseconds(middle.low)} – {milliseconds(middle.high)}")
    if row.model in report.red:
        return (*timed, "refused", "")
    if row.speed is None:
        return (*timed, "", "")
    return (*timed, times(row.speed.median), _interval(row.speed))


def _interval(found: Interval) -> str:
    return f"{found.low:.2f} – {found.high:.2f}"


def _memory(row: Row) -> str:
    return "" if row.peak is None else amount(row.peak)


def _crossing(found: Crossover) -> str:
    if found.length is None or found.between is None:
        return f"{found.model}: {found.verdict}"
    low, high = found.between
    return (
        f"{found.model}: {found.verdict} about {found.dimension}={figure(found.length)}"
        f" (measured at {low} and {high})"
    )
