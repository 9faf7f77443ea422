"""Applying rules that are a form: site by site, as `rewriter.rewrite` does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewriter.rules.check import Check
from rewriter.rules.record import Fused
from rewriter.rules.state import why_not_in_turn

if TYPE_CHECKING:
    from rewriter.program.program import Program
    from rewriter.record import Applied
    from rewriter.rules.form_rule import FormRule
    from rewriter.sites.site import AttentionSite

__all__ = ["in_form"]


def in_form(
    program: Program, rule: FormRule, seed: int, target: str | None, verify: bool
) -> tuple[Program, list[Fused]]:
    """Apply a rule that is a form at sites."""
    from rewriter.engine import rewrite
    from rewriter.selectors import Selector

    form = rule.form()
    sites = [s for s in program.sites if s.kind in form.kinds and rule.fits(program, s)]
    reasons = {site.id: rule.why_not(site) for site in sites}
    left = [Fused(rule.name, s.output, False, reasons[s.id]) for s in sites if reasons[s.id] is not None]
    legal = {site.id: site for site in sites if reasons[site.id] is None}
    reason = rule.declined(program, target)
    if reason is not None:
        dear = [Fused(rule.name, s.output, False, f"{rule.gain(s)}: {reason}") for s in legal.values()]
        return program, [*dear, *left]
    if not legal:
        return program, left
    steps = [(form, Selector.parse(",".join(legal)))]
    inline = program.format == "onnx"
    made, record = rewrite(program, steps, seed=seed, target=target, verify=verify, inline=inline)
    reason = why_not_in_turn(program, made, seed) if verify else None
    if reason is not None:
        return program, [*(Fused(rule.name, s.output, False, reason) for s in legal.values()), *left]
    return made, [*(_at_site(rule, legal[entry.site], entry) for entry in record.sites), *left]


def _at_site(rule: FormRule, site: AttentionSite, entry: Applied) -> Fused:
    tried: Check | None = None
    if (found := entry.check) is not None:
        tried = Check(found.ok, found.reason, found.error, found.original_error, found.tolerance)
    gain = rule.gain(site) if entry.committed else None
    return Fused(rule.name, site.output, entry.committed, entry.reason, tried, gain)
