"""``rewriter validate``."""

from __future__ import annotations

from dataclasses import replace

import typer

from rewriter.cli.files import write_text
from rewriter.cli.models import open_model
from rewriter.cli.output import emit_json, progress_bar, show
from rewriter.cli.paths import check_output
from rewriter.report.console import validation_view
from rewriter.verify.budget import parse_budgets

__all__ = ["validate_models"]


def validate_models(
    original: str,
    rewritten: str,
    data: str | None,
    budget: tuple[str, ...],
    source: str | None,
    report: str | None,
    seed: int,
    json: bool,
) -> None:
    """Compare two models, print what was found, and exit with 1 when the second one fails."""
    budgets = parse_budgets(budget)
    page = check_output(report, [original, rewritten]) if report is not None else None
    from rewriter.verify.compare import validate

    with progress_bar() as progress:
        progress("loading", 0, 0)
        first, second = open_model(original), open_model(rewritten)
        third = open_model(source) if source is not None else None
        found = validate(first, second, data, budgets, third, seed, progress)
    found = replace(found, original=original, rewritten=rewritten)
    if page is not None:
        write_text(page, found.to_html())
    if json:
        emit_json(found.to_dict())
    else:
        show(validation_view(found))
    if not found.ok:
        raise typer.Exit(1)
