"""``rewriter inspect``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rewriter.cli.models import open_model
from rewriter.cli.output import emit_json, progress_bar, show, width
from rewriter.errors import BudgetError
from rewriter.program.program import Program
from rewriter.report.console import drawing_view, inspection_view
from rewriter.report.cost_share import cost_shares
from rewriter.report.drawing import draw
from rewriter.report.inspection import inspection
from rewriter.report.neighbourhood import neighbourhood

__all__ = ["Inspection", "inspect_model"]


@dataclass(frozen=True)
class Inspection:
    """What ``rewriter inspect`` was asked for.

    Parameters
    ----------
    model
        As the user wrote it.
    require_sites
        Fewer sites than that fail.
    require_coverage
        Percent: a smaller part of what may be attention fails.
    explain
        Name of a node whose surroundings are drawn, instead of the tables.
    """

    model: str
    require_sites: int | None = None
    require_coverage: float | None = None
    explain: str | None = None


def inspect_model(request: Inspection, json: bool) -> None:
    """Print the sites of a model, or what stands around one of its nodes.

    Raises
    ------
    BudgetError
        When fewer sites are found, or less is covered, than required; what was found is printed first.
    InputError
        When the model cannot be read or there is no such node.
    """
    with progress_bar() as progress:
        progress("loading", 0, 0)
        program = open_model(request.model)
        progress("looking for attention", 0, 0)
        record = inspection(program, request.model)
        lines = None if request.explain is None else _drawn(program, request.explain, record)
        shares, sizes = ({}, {}) if json or lines is not None else cost_shares(program)
    missed = _missed(request, record)
    if json:
        emit_json({**record, "error": missed} if missed else record)
    elif lines is not None:
        show(drawing_view(lines))
    else:
        show(inspection_view(record, shares, sizes))
    if missed:
        raise BudgetError(missed)


def _drawn(program: Program, name: str, record: dict[str, Any]) -> list[str]:
    """Return the drawing around a node, and put it into the record."""
    found = neighbourhood(program, name)
    lines = draw(found, width())
    record["explained"] = {
        "node": found.node,
        "site": found.site,
        "refused": found.refused,
        "summary": list(found.summary),
        "drawing": lines,
    }
    return lines


def _missed(request: Inspection, record: dict[str, Any]) -> str | None:
    """Return what is required and not there, or None."""
    found, covered, said = len(record["sites"]), record["coverage"], []
    if request.require_sites is not None and found < request.require_sites:
        said.append(f"{request.model} has {found} sites; --require-sites asks for {request.require_sites}")
    if request.require_coverage is not None and covered is not None and covered < request.require_coverage:
        lost = sum(r["missed"] for r in record["refused"])
        said.append(
            f"{request.model}: {found} of {found + lost} places that may be attention are sites,"
            f" {covered:.4g}%; --require-coverage asks for {request.require_coverage:g}%"
        )
    return "; ".join(said) or None
