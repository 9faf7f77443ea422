"""Timing whole models against each other: in turns, at several sizes, with an interval for every ratio."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, log
from typing import Any

import numpy as np

from rewriter.errors import InputError
from rewriter.program.program import Program
from rewriter.verify.inputs import Case
from rewriter.verify.intervals import Interval, median_interval
from rewriter.verify.progress import Progress, silent
from rewriter.verify.running import RunError, run_positional
from rewriter.verify.signature import Match, match_signatures
from rewriter.verify.timing import interleaved

__all__ = ["BenchReport", "Crossover", "Peak", "Row", "SizeReport", "bench", "given", "time_models"]

Peak = Callable[[str, Case], int | None]
"""Measures how many bytes a model needs for one call; None where that is not known."""


@dataclass(frozen=True, slots=True)
class Row:
    """One model at one size.

    Parameters
    ----------
    model
        What the user called it.
    seconds
        Of every round; empty where it could not be run.
    speed
        How many times faster than the first model: the ratio of each round, their median and its interval.
        None for the first model, and where one of the two could not be run.
    peak
        Largest growth of a process of its own during one call, in bytes; None where it was not measured.
    error
        Why it could not be run, or None.
    """

    model: str
    seconds: tuple[float, ...] = ()
    speed: Interval | None = None
    peak: int | None = None
    error: str | None = None

    @property
    def middle(self) -> Interval | None:
        """The median of the seconds and its interval."""
        return median_interval(self.seconds) if self.seconds else None


@dataclass(frozen=True, slots=True)
class SizeReport:
    """All models at one size.

    Parameters
    ----------
    name
        Of the input.
    sizes
        Numbers of its named dimensions; empty for data.
    rows
        One per model, the first being what the others are compared with.
    """

    name: str
    sizes: Mapping[str, int]
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "input": self.name,
            "sizes": dict(self.sizes),
            "models": [
                {
                    "model": r.model,
                    "seconds": list(r.seconds),
                    "median": _interval(r.middle),
                    "speed_up": _interval(r.speed),
                    "peak_bytes": r.peak,
                    "error": r.error,
                }
                for r in self.rows
            ],
        }


@dataclass(frozen=True, slots=True)
class Crossover:
    """From which length on a model is faster than the first.

    Parameters
    ----------
    model
        Which.
    dimension
        The one that varies.
    verdict
        ``"faster everywhere"``, ``"slower everywhere"``, the same with ``"where it is decided"`` when at
        some sizes it is not, ``"faster from"`` or ``"faster up to"`` a length, or ``"undecided"``: an
        interval that holds 1 decides nothing.
    length
        Where the ratio is 1, on a straight line between the logarithms of the two sizes around it; None
        unless it crosses.
    between
        The two sizes.
    """

    model: str
    dimension: str
    verdict: str
    length: float | None = None
    between: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class BenchReport:
    """What `bench` measured.

    Parameters
    ----------
    models
        Names; the first is what the others are compared with.
    sizes
        One report per size.
    crossovers
        One per other model when exactly one dimension varies.
    red
        Models whose validation against the first failed, each with the verdict.
    """

    models: tuple[str, ...]
    sizes: tuple[SizeReport, ...]
    crossovers: tuple[Crossover, ...] = ()
    red: Mapping[str, str] = field(default_factory=dict)


def bench(
    programs: Mapping[str, Program],
    cases: Sequence[Case],
    *,
    rounds: int = 15,
    seconds: float | None = None,
    red: Mapping[str, str] | None = None,
    peak: Peak | None = None,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
    match: Match | None = None,
) -> BenchReport:
    """Time models of one signature against the first of them.

    Parameters
    ----------
    programs
        By name; the first is what the others are compared with.
    cases
        Inputs of the first model, one per size.
    rounds, seconds
        As `rewriter.verify.timing.interleaved`, at each size.
    red
        What must not be called faster: models whose validation failed, each with the verdict. They are
        timed, and get no ratio.
    peak
        Measures memory.
    progress
        Told what is being done.
    clock
        As `interleaved`.
    match
        Names of the first model and of every other one that belong together: see
        `rewriter.verify.signature`.

    Raises
    ------
    InputError
        When signatures differ, or the first model can run none of the cases.
    """
    tell, failed = progress or silent, dict(red or {})
    found = []
    for at, case in enumerate(cases):
        tell(f"timing {case.name}", at, len(cases))
        rows = time_models(programs, case, rounds=rounds, seconds=seconds, clock=clock, match=match)
        rows = tuple(
            Row(r.model, r.seconds, None if r.model in failed else r.speed, _peak(peak, r, case), r.error)
            for r in rows
        )
        found.append(SizeReport(case.name, case.sizes, rows))
    if found and all(report.rows[0].error for report in found):
        raise InputError(f"{found[0].rows[0].model} could be run on no input: {found[0].rows[0].error}")
    sizes = tuple(found)
    return BenchReport(tuple(programs), sizes, _crossovers(tuple(programs), sizes), failed)


def time_models(
    programs: Mapping[str, Program],
    case: Case,
    *,
    rounds: int = 15,
    seconds: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
    match: Match | None = None,
) -> tuple[Row, ...]:
    """Time models on one input; see `bench`. Who cannot run is left out of the rounds."""
    (base, first), *_ = programs.items()
    calls: dict[str, Callable[[], object]] = {}
    errors: dict[str, str] = {}
    for name, program in programs.items():
        arrays = given(first, program, case, match)
        try:
            run_positional(program, arrays)
        except RunError as error:
            errors[name] = str(error)
            continue
        calls[name] = lambda program=program, arrays=arrays: program.run(*arrays)  # type: ignore[misc]
    timing = interleaved(calls, rounds=rounds, seconds=seconds, clock=clock).seconds if calls else {}
    return tuple(
        Row(
            name,
            timing.get(name, ()),
            _speed(timing[base], timing[name]) if name != base and {base, name} <= timing.keys() else None,
            error=errors.get(name),
        )
        for name in programs
    )


def given(first: Program, program: Program, case: Case, match: Match | None = None) -> list[np.ndarray]:
    """Return the inputs of a case of the first model in the order of another one, or of the first itself.

    Raises
    ------
    InputError
        When signatures differ.
    """
    if program is first:
        return [case.inputs[name] for name in first.graph.inputs]
    return match_signatures(first, program, match).given(case.inputs)


def _speed(base: Sequence[float], other: Sequence[float]) -> Interval:
    return median_interval([a / b for a, b in zip(base, other, strict=True)])


def _peak(peak: Peak | None, row: Row, case: Case) -> int | None:
    return None if peak is None or row.error is not None else peak(row.model, case)


def _interval(found: Interval | None) -> dict[str, float] | None:
    if found is None:
        return None
    return {
        "median": found.median,
        "low": found.low,
        "high": found.high,
        "confidence": found.confidence,
    }


def _crossovers(models: Sequence[str], reports: Sequence[SizeReport]) -> tuple[Crossover, ...]:
    every = [dict(r.sizes) for r in reports]
    names = {n for sizes in every for n in sizes}
    varying = [n for n in sorted(names) if len({sizes.get(n) for sizes in every}) > 1]
    if len(varying) != 1:
        return ()
    (dimension,) = varying
    found = []
    for at, model in enumerate(models[1:], start=1):
        pairs = {r.sizes[dimension]: r.rows[at].speed for r in reports if dimension in r.sizes}
        known = [(n, speed) for n, speed in sorted(pairs.items()) if speed is not None]
        if len(known) > 1:
            found.append(_crossover(model, dimension, known))
    return tuple(found)


def _crossover(model: str, dimension: str, speeds: Sequence[tuple[int, Interval]]) -> Crossover:
    sure = [(n, s) for n, s in speeds if s.excludes(1.0)]
    signs = [s.median > 1 for _, s in sure]
    if len(set(signs)) == 1:
        where = "everywhere" if len(sure) == len(speeds) else "where it is decided"
        return Crossover(model, dimension, f"{'faster' if signs[0] else 'slower'} {where}")
    turns = [k for k in range(1, len(sure)) if signs[k] != signs[k - 1]]
    if len(turns) != 1:
        return Crossover(model, dimension, "undecided")
    (n, before), (m, after) = sure[turns[0] - 1], sure[turns[0]]
    a, b = log(before.median), log(after.median)
    length = exp(log(n) + (log(m) - log(n)) * (-a) / (b - a))
    return Crossover(model, dimension, "faster up to" if signs[0] else "faster from", length, (n, m))
