"""What a rule is, as plain values and as text: ``passes`` and ``explain``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.text import Text

from rewriter.report.console import spaced, table

if TYPE_CHECKING:
    from rewriter.rules import Rule

__all__ = ["rule_record", "rule_view", "rules_view"]


def rule_record(rule: Rule) -> dict[str, Any]:
    """Return everything that is known about a rule."""
    from rewriter.rules.graph_rule import GraphRule

    kind = type(rule)
    about = sys.modules[kind.__module__].__doc__ or kind.__doc__ or ""
    return {
        "rule": rule.name,
        "pass": kind.__name__,
        "summary": about.strip().partition("\n")[0],
        "formula": rule.looks_for if isinstance(rule, GraphRule) else str(rule.formula),
        "about": about.strip(),
        "fidelity": "exact",
    }


def rules_view(records: Iterable[Mapping[str, Any]]) -> RenderableType:
    """Return the table of rules."""
    view = table("rule", "what it does", give=["what it does"])
    for record in records:
        view.add_row(record["rule"], Text(record["summary"]))
    return view


def rule_view(record: Mapping[str, Any]) -> RenderableType:
    """Return what ``explain`` prints."""
    title = Text(record["rule"], style="bold")
    title.append(f"  rewriter.passes.{record['pass']}", style="dim")
    command = f"rewriter rewrite model.onnx -o fused.onnx --apply {record['rule']}"
    return spaced(
        [
            title,
            Text(record["about"]),
            Text.assemble(("Formula  ", "bold"), record["formula"]),
            Text.assemble(("Example  ", "bold"), command),
        ]
    )
