"""``rewriter inspect``."""

from __future__ import annotations

from rewriter.cli.models import open_model
from rewriter.cli.output import emit_json, progress_bar, show
from rewriter.errors import BudgetError
from rewriter.report.console import inspection_view
from rewriter.report.cost_share import cost_shares
from rewriter.report.inspection import inspection

__all__ = ["inspect_model"]


def inspect_model(model: str, json: bool, require_sites: int | None) -> None:
    """Print the sites of a model.

    Raises
    ------
    BudgetError
        When there are fewer sites than required; they are printed first.
    """
    with progress_bar() as progress:
        progress("loading", 0, 0)
        program = open_model(model)
        progress("looking for attention", 0, 0)
        record = inspection(program, model)
        shares, sizes = ({}, {}) if json else cost_shares(program)
    found = len(record["sites"])
    missed = require_sites is not None and found < require_sites
    reason = f"{model} has {found} sites; --require-sites asks for {require_sites}"
    if json:
        emit_json({**record, "error": reason} if missed else record)
    else:
        show(inspection_view(record, shares, sizes))
    if missed:
        raise BudgetError(reason)
