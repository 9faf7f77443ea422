"""``rewriter bench``: validate, time in turns, and only then say what is faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from rewriter.cli.models import named_model
from rewriter.cli.output import emit_json, progress_bar, show
from rewriter.errors import InputError
from rewriter.report.timings import bench_record, bench_view
from rewriter.verify.binding import parse_sizes
from rewriter.verify.budget import parse_budgets

if TYPE_CHECKING:
    from rewriter.program.program import Program
    from rewriter.verify.inputs import Case
    from rewriter.verify.progress import Progress
    from rewriter.verify.validation import ValidationReport

__all__ = ["Request", "bench_models"]


@dataclass(frozen=True)
class Request:
    """The options of one call, as they were typed."""

    models: tuple[str, ...]
    sizes: tuple[str, ...]
    data: str | None
    budget: tuple[str, ...]
    match: tuple[str, ...]
    rounds: int
    seconds: float
    memory: bool
    force: bool
    seed: int


def bench_models(request: Request, json: bool) -> None:
    """Time models against the first one, print what was found, and exit with 1 when one was refused.

    Raises
    ------
    InputError
        When a model or an input cannot be read, or sizes do not fit.
    """
    if request.sizes and request.data is not None:
        raise InputError("--at and --data contradict each other; give one of them")
    budgets, sizes = parse_budgets(request.budget), parse_sizes(request.sizes)
    from rewriter.verify.bench import bench
    from rewriter.verify.models import as_programs

    with progress_bar() as progress:
        progress("loading", 0, 0)
        names = _named(request.models)
        programs = dict(zip(names, as_programs(*map(named_model, names.values())), strict=True))
        cases = _cases(request, sizes, next(iter(programs.values())))
        reports = _validated(programs, cases, budgets, request, progress)
        red = {name: r.verdict for name, r in reports.items() if not r.ok}
        found = bench(
            programs,
            cases,
            rounds=request.rounds,
            seconds=request.seconds,
            red={} if request.force else red,
            peak=_peak(names, programs, request.match) if request.memory else None,
            progress=progress,
            match=request.match,
        )
    if json:
        told = {n: {"ok": r.ok, "judged": r.judged, "verdict": r.verdict} for n, r in reports.items()}
        emit_json(bench_record(found, told))
    else:
        show(bench_view(found), *_verdicts(reports, request.force))
    if red and not request.force:
        raise typer.Exit(1)


def _named(models: Sequence[str]) -> dict[str, str]:
    """Return models by a name that no other one has."""
    found: dict[str, str] = {}
    for model in models:
        label, count = model, 1
        while label in found:
            count += 1
            label = f"{model} ({count})"
        found[label] = model
    return found


def _cases(request: Request, sizes: Mapping[str, Sequence[int]], program: Program) -> list[Case]:
    from rewriter.verify.data import data_cases
    from rewriter.verify.sizes import sized_cases

    if request.data is not None:
        return list(data_cases(request.data, program))
    return sized_cases(program, sizes, request.seed)


def _validated(
    programs: Mapping[str, Program],
    cases: Sequence[Case],
    budgets: Sequence[Any],
    request: Request,
    progress: Progress,
) -> dict[str, ValidationReport]:
    """Return the verdict on every model against the first, on what is timed as well."""
    from rewriter.verify.compare import validate

    (base, first), *_ = programs.items()
    inputs = [case.inputs for case in cases]
    return {
        name: validate(
            first, program, inputs, budgets, seed=request.seed, progress=progress, match=request.match
        )
        for name, program in programs.items()
        if name != base
    }


def _peak(names: Mapping[str, str], programs: Mapping[str, Program], match: Sequence[str]) -> Any:
    from rewriter.cli.peak import peak_of
    from rewriter.verify.bench import given

    first = next(iter(programs.values()))

    def measure(label: str, case: Case) -> int | None:
        return peak_of(names[label], given(first, programs[label], case, match))

    return measure


def _verdicts(reports: Mapping[str, ValidationReport], force: bool) -> list[Any]:
    from rewriter.report.console import verdict_line

    shown = [(n, r) for n, r in reports.items() if r.ok or force]
    return [verdict_line(r.ok, f"{name}: {r.verdict}") for name, r in shown]
