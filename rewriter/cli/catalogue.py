"""``rewriter passes`` and ``rewriter explain``."""

from __future__ import annotations

from rewriter.cli.output import emit_json, show
from rewriter.passes import CATALOG, RULES, get, parse_rules
from rewriter.report.explanation import catalogue_record, catalogue_view, explanation, explanation_view
from rewriter.report.rules import rule_record, rule_view, rules_view

__all__ = ["explain_form", "list_passes"]


def list_passes(json: bool) -> None:
    """Print every form with its parameters, and every rule."""
    records = [catalogue_record(name, get(name)) for name in sorted(CATALOG)]
    rules = [rule_record(rule) for rule in parse_rules("exact") or ()]
    if json:
        emit_json({"passes": records, "rules": rules})
    else:
        show(catalogue_view(records), "", rules_view(rules))


def explain_form(form: str, json: bool) -> None:
    """Print what a form or a rule is.

    Raises
    ------
    InputError
        When there is no such form.
    """
    if form in RULES:
        (rule,) = parse_rules(form) or ()
        described = rule_record(rule)
        if json:
            emit_json(described)
        else:
            show(rule_view(described))
        return
    record = explanation(form, get(form))
    if json:
        emit_json(record)
    else:
        show(explanation_view(record))
