"""``rewriter passes`` and ``rewriter explain``."""

from __future__ import annotations

from rewriter.cli.output import emit_json, show
from rewriter.passes import CATALOG, get
from rewriter.report.explanation import catalogue_record, catalogue_view, explanation, explanation_view

__all__ = ["explain_form", "list_passes"]


def list_passes(json: bool) -> None:
    """Print every form with its parameters."""
    records = [catalogue_record(name, get(name)) for name in sorted(CATALOG)]
    if json:
        emit_json({"passes": records})
    else:
        show(catalogue_view(records))


def explain_form(form: str, json: bool) -> None:
    """Print what a form is.

    Raises
    ------
    InputError
        When there is no such form.
    """
    record = explanation(form, get(form))
    if json:
        emit_json(record)
    else:
        show(explanation_view(record))
