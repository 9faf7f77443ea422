"""``rewriter validate``."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import typer

from rewriter.cli.files import write_text
from rewriter.cli.models import named_model
from rewriter.cli.output import emit_json, progress_bar, show
from rewriter.cli.paths import check_output
from rewriter.cli.session import resumable
from rewriter.errors import InputError
from rewriter.report.console import validation_view
from rewriter.report.junit import junit
from rewriter.report.sites_table import sites_view
from rewriter.verify.binding import parse_sizes
from rewriter.verify.budget import parse_budgets
from rewriter.verify.heads import parse_heads
from rewriter.verify.per_site import PerSite
from rewriter.verify.specs import parse_spec

__all__ = ["Request", "validate_models"]

RESUME = ".resume"
"""What the record of finished work is called, after the name of the report."""


@dataclass(frozen=True)
class Request:
    """The options of one call, as they were typed."""

    original: str
    rewritten: str
    data: str | None = None
    budget: tuple[str, ...] = ()
    task: tuple[str, ...] = ()
    source: str | None = None
    mask: tuple[str, ...] = ()
    match: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    report: str | None = None
    heads: str | None = None
    junit: str | None = None
    resume: str | None = None
    seed: int = 0

    @property
    def files(self) -> list[str]:
        """What is read, and so never written; of a text or images also without how they are prepared."""
        spec = parse_spec(self.data) if self.data is not None else None
        names = (self.original, self.rewritten, self.source, self.data, spec and str(spec.path))
        return [name for name in names if name]


def validate_models(request: Request, json: bool) -> None:
    """Compare two models, print what was found, and exit with 1 when the second one fails."""
    budgets, sizes = parse_budgets(request.budget), parse_sizes(request.sizes)
    page = check_output(request.report, request.files) if request.report is not None else None
    tests = check_output(request.junit, request.files) if request.junit is not None else None
    record = _record(request, page)
    heads = parse_heads(request.heads) if request.heads is not None else None
    if heads is not None and page is None:
        raise InputError("--heads says what the page shows; give --report R.html with it")
    from rewriter.verify.compare import validate
    from rewriter.verify.evidence import failed_cases, illustrated, with_sites
    from rewriter.verify.models import as_programs
    from rewriter.verify.provenance import fingerprints, provenance, read_from

    with resumable(record), progress_bar() as progress:
        progress("loading", 0, 0)
        first, second = as_programs(named_model(request.original), named_model(request.rewritten))
        found = validate(
            first,
            second,
            request.data,
            budgets,
            named_model(request.source) if request.source is not None else None,
            request.seed,
            progress,
            tasks=request.task,
            mask=request.mask,
            match=request.match,
            sizes=sizes,
            resume=record,
            heads=heads,
        )
        named = {request.original: first, request.rewritten: second}
        read = read_from(request.original, first.files) | read_from(request.rewritten, second.files)
        command, models = ["rewriter", *sys.argv[1:]], fingerprints(named)
        arrays = {request.data or "": found.data_sha256} if found.data_sha256 is not None else {}
        came_from = provenance(request.files, request.seed, command, read, models, arrays)
        found = replace(found, original=request.original, rewritten=request.rewritten, provenance=came_from)
        if page is not None:
            found = illustrated(found, first, second, request.data, sizes, progress, request.match, heads)
            write_text(page, found.to_html())
        elif not found.ok:
            cases = failed_cases(found, first, request.data, request.seed, sizes)
            found = with_sites(found, first, second, cases, progress, request.match)
    if tests is not None:
        write_text(tests, junit(found))
    if json:
        emit_json(found.to_dict())
    else:
        show(validation_view(found))
        if isinstance(found.per_site, PerSite) and not found.ok:
            show("", sites_view(found.per_site))
    if not found.ok:
        raise typer.Exit(1)


def _record(request: Request, page: Path | None) -> Path | None:
    """Return where finished work is recorded: where the user says, else beside the report."""
    if request.resume is not None:
        record = check_output(request.resume, request.files)
        if page is not None and record.resolve() == page.resolve():
            raise InputError(f"--resume {record} is the report; give another file")
        return record
    return page.with_name(page.name + RESUME) if page is not None else None
