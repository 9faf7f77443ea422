"""What a page shows besides the measures: every site in both models, pictures, times, the command."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING

from rewriter.errors import InputError
from rewriter.verify.bench import SizeReport, time_models
from rewriter.verify.data import data_cases
from rewriter.verify.inputs import generated_cases
from rewriter.verify.per_site import PerSite
from rewriter.verify.progress import silent
from rewriter.verify.provenance import Provenance, fingerprints, provenance, read_from
from rewriter.verify.running import can_run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rewriter.program.program import Program
    from rewriter.report.graph_picture import Drawing
    from rewriter.verify.data import Data
    from rewriter.verify.heads import Heads
    from rewriter.verify.inputs import Case
    from rewriter.verify.progress import Progress
    from rewriter.verify.signature import Match
    from rewriter.verify.validation import ValidationReport

__all__ = ["failed_cases", "illustrated", "with_sites"]

ROUNDS, SECONDS = 15, 10.0
"""Of the times on the page."""


def illustrated(
    report: ValidationReport,
    original: Program,
    rewritten: Program,
    data: Data | None,
    sizes: Mapping[str, Sequence[int]] = MappingProxyType({}),
    progress: Progress = silent,
    match: Match | None = None,
    heads: Heads | None = None,
) -> ValidationReport:
    """Return the report with everything that a page has room for: sites, times, graphs.

    Parameters
    ----------
    report
        What was found of the two models.
    original, rewritten
        The models.
    data, sizes
        What they were compared on, as `rewriter.verify.compare.validate` was told.
    progress
        Told what is being done.
    match
        Names of inputs and outputs that belong together.
    heads
        Those whose attention is shown; by default the worst of every site.
    """

    def cases() -> Iterator[Case]:
        return _telling_cases(original, data, report.seed, sizes)

    report = with_sites(report, original, rewritten, cases(), progress, match, heads)
    report = _with_times(report, original, rewritten, cases(), progress, match)
    if report.provenance is None:
        report = replace(report, provenance=_came_from(report, original, rewritten, data))
    return replace(report, drawings=tuple(_drawings(report, original, rewritten)))


def _came_from(
    report: ValidationReport, original: Program, rewritten: Program, data: Data | None
) -> Provenance:
    programs = {original.source: original, rewritten.source: rewritten}
    read = {k: v for name, program in programs.items() for k, v in read_from(name, program.files).items()}
    given = [os.fspath(data)] if isinstance(data, str | os.PathLike) else []
    arrays = {"".join(given) or "data": report.data_sha256} if report.data_sha256 is not None else {}
    return provenance([*programs, *given], report.seed, None, read, fingerprints(programs), arrays)


def with_sites(
    report: ValidationReport,
    original: Program,
    rewritten: Program,
    cases: Iterator[Case],
    progress: Progress,
    match: Match | None = None,
    heads: Heads | None = None,
) -> ValidationReport:
    """Return the report with a record of every site, if it has none and the models can be cut at them."""
    from rewriter.verify.lockstep import per_site

    if report.per_site is not None or not original.sites:
        return report
    try:
        found = per_site(
            original, rewritten, cases, seed=report.seed, progress=progress, match=match, heads=heads
        )
    except InputError as error:
        return replace(report, notes=(*report.notes, str(error)))
    return replace(report, per_site=found)


def _with_times(
    report: ValidationReport,
    original: Program,
    rewritten: Program,
    cases: Iterator[Case],
    progress: Progress,
    match: Match | None,
) -> ValidationReport:
    """Return the report with the times of both models on one input; one that failed gets no ratio."""
    case = next(cases, None)
    if case is None:
        return report
    progress("timing", 0, 0)
    names = (report.original, report.rewritten if report.rewritten != report.original else "rewritten")
    programs = dict(zip(names, (original, rewritten), strict=True))
    rows = time_models(programs, case, rounds=ROUNDS, seconds=SECONDS, match=match)
    if not report.ok:
        rows = tuple(replace(row, speed=None) for row in rows)
    return replace(report, timings=(*report.timings, SizeReport(case.name, case.sizes, rows)))


def _drawings(report: ValidationReport, original: Program, rewritten: Program) -> list[Drawing]:
    """Return the graphs around the site that is to blame, or else has the largest error."""
    from rewriter.report.graph_picture import drawing_of

    if not isinstance(report.per_site, PerSite):
        return []
    sites = {site.id: site for site in original.sites}
    errors = {
        s.site: s.local.distance.rel
        for s in report.per_site.sites
        if s.local is not None and s.site in sites and s.form is not None
    }
    worst = next(iter(report.per_site.blamed), max(errors, key=errors.__getitem__, default=None))
    if worst is None or worst not in sites:
        return []
    return [drawing_of(original, rewritten, sites[worst])]


def _telling_cases(
    program: Program, data: Data | None, seed: int, sizes: Mapping[str, Sequence[int]]
) -> Iterator[Case]:
    """Yield the inputs that sites are compared on: the data if there is any, else random ones."""
    if data is not None:
        yield from data_cases(data, program)
        return
    with suppress(InputError):
        every = generated_cases(program, seed, lambda inputs: can_run(program, inputs), sizes=sizes)
        yield from islice((c for c in every if c.group == "random"), len(sizes) or None)


def failed_cases(
    report: ValidationReport,
    program: Program,
    data: Data | None,
    seed: int,
    sizes: Mapping[str, Sequence[int]],
) -> Iterator[Case]:
    """Yield the inputs that sites are compared on where a model failed: those it failed on first."""
    failed = {case.name for case in report.cases if not case.ok}
    found = list(data_cases(data, program)) if data is not None else []
    with suppress(InputError):
        found += generated_cases(program, seed, lambda inputs: can_run(program, inputs), sizes=sizes)
    yield from sorted(found, key=lambda case: case.name not in failed)
