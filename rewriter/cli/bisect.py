"""``rewriter bisect``: which sites are to blame, and the smallest model that shows it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from rewriter.cli.files import write_text
from rewriter.cli.models import named_model
from rewriter.cli.output import emit_json, progress_bar, show
from rewriter.cli.paths import check_output
from rewriter.cli.session import resumable
from rewriter.errors import InputError
from rewriter.report.bisecting import bisect_view
from rewriter.verify.budget import parse_budgets
from rewriter.verify.specs import parse_spec

if TYPE_CHECKING:
    from rewriter.plan import Plan
    from rewriter.program.program import Program
    from rewriter.verify.bisect import BisectReport
    from rewriter.verify.progress import Progress
    from rewriter.verify.reproduce import Reproduction

__all__ = ["Request", "bisect_models"]


@dataclass(frozen=True)
class Request:
    """The options of one call, as they were typed."""

    original: str
    rewritten: str | None = None
    apply: tuple[str, ...] = ()
    plan: str | None = None
    data: str | None = None
    budget: tuple[str, ...] = ()
    task: tuple[str, ...] = ()
    mask: tuple[str, ...] = ()
    match: tuple[str, ...] = ()
    target: str | None = None
    limit: int = 8
    reproduce: str | None = None
    kept: str | None = None
    resume: str | None = None
    seed: int = 0


def bisect_models(request: Request, json: bool) -> None:
    """Find the smallest set of sites to revert; exit with 1 when there is something to revert.

    Raises
    ------
    InputError
        When options contradict each other, or something cannot be read or written.
    """
    _check(request)
    spec = parse_spec(request.data) if request.data is not None else None
    read = (request.original, request.rewritten, request.data, request.plan, spec and str(spec.path))
    inputs = [name for name in read if name]
    kept = check_output(request.kept, inputs) if request.kept is not None else None
    record = check_output(request.resume, inputs) if request.resume is not None else None
    folder = _folder(request.reproduce, inputs)
    budgets = parse_budgets(request.budget)
    from rewriter.verify.bisect import bisect

    with progress_bar() as progress:
        progress("loading", 0, 0)
        original, rewritten, plan = _models(request, progress)
        with resumable(record):
            found = bisect(
                original,
                rewritten,
                request.data,
                budgets,
                plan=plan,
                tasks=request.task,
                mask=request.mask,
                match=request.match,
                seed=request.seed,
                limit=request.limit,
                resume=record,
                progress=progress,
            )
        written = _reproduced(found, original, rewritten, request, folder)
    found = replace(found, original=request.original, rewritten=request.rewritten or _applied(request))
    if kept is not None and found.kept is not None:
        write_text(kept, found.kept.to_json())
    _tell(found, written, kept, json)
    if not found.ok:
        raise typer.Exit(1)


def _check(request: Request) -> None:
    ways = [request.rewritten is not None, bool(request.apply), request.plan is not None]
    if sum(ways) == 1 or (ways == [True, False, True]):
        if request.kept is not None and not (request.apply or request.plan):
            raise InputError("--kept writes what is left of a plan; give --plan or --apply")
        return
    raise InputError(
        "give REWRITTEN, or what was to be done with ORIGINAL: --apply FORM or --plan PLAN.json; a plan may"
        " stand beside REWRITTEN to say how it was made"
    )


def _folder(name: str | None, inputs: list[str]) -> Path | None:
    if name is None:
        return None
    folder = Path(name)
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise InputError(f"--reproduce {folder} is no directory; give one, which is made if it is missing")
    from rewriter.verify.reproduce import part_files

    for path in part_files(folder) if os.path.isdir(folder) else [folder]:
        check_output(path, inputs)
    return folder


def _models(request: Request, progress: Progress) -> tuple[Program, Program, Plan | None]:
    from rewriter.engine import rewrite
    from rewriter.plan import Plan
    from rewriter.selectors import parse_apply
    from rewriter.verify.models import as_program, as_programs

    plan = Plan.load(request.plan) if request.plan is not None else None
    if request.rewritten is not None:
        first, second = as_programs(named_model(request.original), named_model(request.rewritten))
        return first, second, plan
    original = as_program(named_model(request.original))
    steps = plan if plan is not None else [parse_apply(text) for text in request.apply]
    rewritten, done = rewrite(
        original, steps, data=request.data, seed=request.seed, target=request.target, progress=progress
    )
    if not done.committed:
        reasons = "; ".join(dict.fromkeys(s.reason for s in done.refused if s.reason))
        raise InputError(f"no site of {request.original} was rewritten: {reasons or 'none was selected'}")
    return original, rewritten, done.plan


def _reproduced(
    found: BisectReport, original: Program, rewritten: Program, request: Request, folder: Path | None
) -> Reproduction | None:
    if folder is None or found.worst is None:
        return None
    from rewriter.verify.bisect import deciding_cases
    from rewriter.verify.hybrid import Blend
    from rewriter.verify.reproduce import reproduce

    cases = deciding_cases(original, request.data, request.seed, 1, bool(request.budget))
    before = {f"before {s.before}": s.value for s in found.per_site.stretches}
    blend = Blend(original, rewritten, request.match)
    return reproduce(blend, found.worst, cases[0], folder, before.get(found.worst))


def _applied(request: Request) -> str:
    return request.plan or " ".join(request.apply)


def _tell(found: BisectReport, written: Reproduction | None, kept: Path | None, json: bool) -> None:
    plan = str(kept) if kept is not None and found.kept is not None else None
    if not json:
        show(bisect_view(found, written, plan))
        if written is not None:
            typer.echo(written.command)  # never wrapped, to be copied
        return
    record = found.to_dict()
    record["plan"] = plan
    record["reproduction"] = None if written is None else written.to_dict()
    emit_json(record)
