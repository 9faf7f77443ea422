"""Applying rules to a program: what fits is built, verified on numbers, and committed in one edit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from rewriter.errors import RewriterError
from rewriter.lower.errors import EmitError
from rewriter.program.program import Program, Replacement
from rewriter.rules.check import Check, check
from rewriter.rules.find import find
from rewriter.rules.form_rule import FormRule
from rewriter.rules.graph_rule import Change, GraphRule
from rewriter.rules.in_form import in_form
from rewriter.rules.own_code import RuleError, check_rule
from rewriter.rules.record import Fused, Fusion
from rewriter.rules.rerun import rerun, rerun_whole
from rewriter.rules.rule import Rule
from rewriter.rules.state import why_not_in_turn
from rewriter.rules.whole_rule import WholeRule
from rewriter.verify.running import first_line, runtime_errors
from rewriter.verify.site import Emit

__all__ = ["fuse"]

ROUNDS = 4
"""How often rules that look at the whole graph are applied at most, where others have changed it since."""


def fuse(
    program: Program,
    rules: Sequence[Rule],
    *,
    seed: int = 0,
    target: str | None = None,
    verify: bool = True,
) -> tuple[Program, Fusion]:
    """Return a program in which values that rules fit are computed in fewer steps, and the record.

    Every match is built and run, native runtime against native runtime, on probes of several sizes and
    magnitudes; one whose error against float64 exceeds a small multiple of the original's own is left as it
    was. Where the model writes to buffers or inputs, two whole runs in a row are compared, too.

    First come rules that move what is in the body of a loop, then those that look at the whole graph: in the
    order in which they are given, and again until none finds more, `ROUNDS` times at most. Formulas follow,
    once, and in the end what cleans up.

    Parameters
    ----------
    program
        The original; it is not changed.
    rules
        Where several fit one value, the first one counts.
    seed
        Of the probes.
    target
        As in `rewriter.rewrite`.
    verify
        False skips the probes.

    Raises
    ------
    InputError
        When a rule does not say what it is, or names what its formula does not have.
    """
    for rule in rules:
        if not isinstance(rule, GraphRule):
            check_rule(rule)
    whole: list[Fused] = []
    for rule in rules:
        if isinstance(rule, WholeRule) and not rule.follows:
            program, done = _smaller(program, rule, seed, target, verify)
            whole += done
    program, done = _in_rounds(program, [r for r in rules if isinstance(r, GraphRule)], seed, target, verify)
    whole += done
    program, fusion = _fused(
        program, [r for r in rules if not isinstance(r, GraphRule)], seed, target, verify
    )
    matches = [*whole, *fusion.matches]
    for rule in rules:
        if not isinstance(rule, WholeRule) or not rule.follows:
            continue
        if rule.asked or any(m.committed for m in matches):
            program, done = _smaller(program, rule, seed, target, verify)
            matches += done
    return program, Fusion(tuple(matches))


def _smaller(
    program: Program, rule: WholeRule, seed: int, target: str | None, verify: bool
) -> tuple[Program, list[Fused]]:
    """Apply a rule that gives another program as a whole."""
    if rule.declined(program, target) is not None or not program.graph.outputs:
        return program, []
    output = program.graph.outputs[0]
    try:
        made, removed = rule.smaller(program)
        found = rerun_whole(program, made, seed) if removed and verify else None
    except RewriterError as error:
        return program, [Fused(rule.name, output, False, f"it could not be done: {error}")]
    except runtime_errors() as error:
        return program, [Fused(rule.name, output, False, f"it could not be run: {first_line(error)}")]
    if not removed:
        return program, []
    gain = ", ".join(f"{n} {what} fewer" for what, n in removed.items())
    ok = found is None or found.ok
    reason = None if found is None else found.reason
    return made if ok else program, [Fused(rule.name, output, ok, reason, found, gain)]


def _fused(
    program: Program, rules: Sequence[Rule], seed: int, target: str | None, verify: bool
) -> tuple[Program, Fusion]:
    """Apply rules that are formulas."""
    options: dict[str, Any] = {} if target is None else {"target": target}
    # plain nodes, not functions: they are few, and runtimes fuse them with their neighbours
    form: dict[str, Any] = {"inline": True} if program.format == "onnx" else {}
    found, refused = find(program, rules, target)
    entries = {r.output: Fused(r.rule, r.output, False, r.reason) for r in refused}
    edits: list[Replacement] = []
    for at, one in enumerate(reversed(found)):
        edit = one.replacement(f"{one.rule.name.replace('-', '_')}_{at}")
        entry = Fused(one.rule.name, one.match.output, True)
        if verify:
            entry = _checked(program, entry, edit, partial(program.emit, **options), seed, one.copies)
        entries[entry.output] = entry
        if entry.committed:
            edits.append(edit)
    made, reasons = _replaced(program, edits, partial(program.replace, **options, **form), seed, verify)
    for name, reason in reasons.items():
        entries[name] = replace(entries[name], committed=False, reason=reason)
    return made, Fusion(tuple(entries[name] for name in program.prims() if name in entries))


def _replaced(
    program: Program,
    edits: Sequence[Replacement],
    make: Callable[[Sequence[Replacement]], Program],
    seed: int,
    verify: bool,
) -> tuple[Program, dict[str, str]]:
    """Return the program with all edits made, or with those that can be made alone, and why others cannot."""

    def tried(some: Sequence[Replacement]) -> tuple[Program, str | None]:
        made = make(some)
        return made, why_not_in_turn(program, made, seed) if verify else None

    left, reasons = list(edits), dict[str, str]()
    while left:
        made, reason = tried(left)
        if reason is None:
            return made, reasons
        alone = {edit.output: tried([edit])[1] for edit in left} if len(left) > 1 else {}
        refused = {name: why for name, why in alone.items() if why is not None}
        reasons |= refused or {edit.output: reason for edit in left}
        left = [edit for edit in left if edit.output not in reasons]
    return program, reasons


def _in_rounds(
    program: Program, rules: Sequence[GraphRule], seed: int, target: str | None, verify: bool
) -> tuple[Program, list[Fused]]:
    """Apply rules in turn until none finds more: one may have laid bare what another one looks for."""
    failed: dict[tuple[str, str, str], Fused] = {}
    committed: dict[int, dict[str, Fused]] = {at: {} for at in range(len(rules))}
    refused: dict[int, list[Fused]] = {}
    seen: dict[int, Program] = {}
    for _ in range(ROUNDS):
        start = program
        for at, rule in enumerate(rules):
            if seen.get(at) is program:
                continue
            program, done = _changed(program, rule, seed, target, verify, failed)
            seen[at] = program
            committed[at].update((entry.output, entry) for entry in done if entry.committed)
            refused[at] = [entry for entry in done if not entry.committed]
        if program is start:
            break
    entries: list[Fused] = []
    for at, done_at in committed.items():
        entries += [*done_at.values(), *(entry for entry in refused[at] if entry.output not in done_at)]
    return program, entries


def _changed(
    program: Program,
    rule: GraphRule,
    seed: int,
    target: str | None,
    verify: bool,
    failed: dict[tuple[str, str, str], Fused],
) -> tuple[Program, list[Fused]]:
    """Apply a rule that looks at the whole graph: all of its changes at once, or those that pass alone.

    What fails is added to ``failed`` by rule, output and gain; what is in there is not tried again.
    """
    if isinstance(rule, FormRule):
        return in_form(program, rule, seed, target, verify)
    found, declined = rule.changes(program)
    keys = {c.output: (rule.name, c.output, c.gain) for c in found}
    changes = [c for c in found if keys[c.output] not in failed]
    left = [failed[key] for key in keys.values() if key in failed]
    left += [Fused(rule.name, d.output, False, d.reason) for d in declined]
    reason = rule.declined(program, target)
    if reason is not None:
        return program, [*(Fused(rule.name, c.output, False, f"{c.gain}: {reason}") for c in changes), *left]
    if not changes:
        return program, left
    together, done = _tried(program, rule, changes, seed, target, verify)
    if together is None and len(changes) == 1:
        failed[keys[changes[0].output]] = done[0]
    if together is not None or len(changes) == 1:
        return together or program, [*done, *left]
    alone = [_tried(program, rule, [change], seed, target, verify) for change in changes]
    passed = [change for change, (made, _) in zip(changes, alone, strict=True) if made is not None]
    refused = [entry for made, tried in alone for entry in tried if made is None]
    failed.update((keys[entry.output], entry) for entry in refused)
    if not passed:
        return program, [*refused, *left]
    together, done = _tried(program, rule, passed, seed, target, verify)
    return together or program, [*done, *refused, *left]


def _tried(
    program: Program, rule: GraphRule, changes: Sequence[Change], seed: int, target: str | None, verify: bool
) -> tuple[Program | None, list[Fused]]:
    """Return the program with changes made, if they pass, and what happened."""
    options: dict[str, Any] = {} if target is None else {"target": target}
    if program.format == "onnx":
        options["inline"] = True
    edits = [edit for change in changes for edit in change.insertions]
    found: Check | None = None
    made: Program | None = None
    try:
        made = program.insert(edits, {}, **options)
        found = rerun(program, made, edits, seed) if verify else None
        reason = found.reason if found is not None else None
        if reason is None and verify:
            reason = why_not_in_turn(program, made, seed)
    except EmitError as error:
        reason = f"it cannot be written for this target: {error}"
    except RewriterError as error:
        reason = f"it could not be run: {error}"
    except runtime_errors() as error:
        reason = f"it could not be run: {first_line(error)}"
    ok = reason is None
    done = [Fused(rule.name, c.output, ok, reason, found, c.gain if ok else None) for c in changes]
    return made if ok else None, done


def _checked(
    program: Program, entry: Fused, edit: Replacement, emit: Emit, seed: int, copies: Mapping[str, str]
) -> Fused:
    try:
        found = check(program, edit, emit, seed, copies)
    except EmitError as error:
        return replace(entry, committed=False, reason=f"it cannot be written for this target: {error}")
    except RuleError as error:
        return replace(entry, committed=False, reason=str(error))
    except RewriterError as error:
        return replace(entry, committed=False, reason=f"it could not be run: {error}")
    except runtime_errors() as error:
        return replace(entry, committed=False, reason=f"it could not be run: {first_line(error)}")
    return replace(entry, committed=found.ok, reason=found.reason, check=found)
