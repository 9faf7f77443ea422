"""A plan: which site gets which form. It is data, saved as JSON, and replayed on the same model."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewriter.errors import InputError
from rewriter.forms import Form
from rewriter.program.program import Program
from rewriter.program.regular import read_text
from rewriter.rules import Rule
from rewriter.sites.site import AttentionSite

__all__ = ["Plan", "PlanStep", "fingerprint"]

VERSION = 1


@dataclass(frozen=True)
class PlanStep:
    """One site and its form.

    Parameters
    ----------
    site
        Id of the site.
    form
        What it gets.
    anchor, signature
        Of the site that the plan was made for: replaying it on another computation is an error.
    """

    site: str
    form: Form
    anchor: str
    signature: str

    @classmethod
    def of(cls, site: AttentionSite, form: Form) -> PlanStep:
        """Return the step that gives ``site`` the form."""
        return cls(site.id, form, site.anchor, site.signature)


@dataclass(frozen=True)
class Plan:
    """What to do with a model.

    Parameters
    ----------
    model
        `fingerprint` of the program that it was made for.
    steps
        At most one per site, in graph order.
    rules
        What is applied once the sites are rewritten.
    """

    model: str
    steps: tuple[PlanStep, ...]
    rules: tuple[Rule, ...] = ()

    @classmethod
    def of(cls, program: Program, assignments: Iterable[tuple[AttentionSite, Form]]) -> Plan:
        """Return the plan that makes these assignments."""
        return cls(fingerprint(program), tuple(PlanStep.of(site, form) for site, form in assignments))

    def assignments(self, program: Program) -> list[tuple[AttentionSite, Form]]:
        """Return sites of a program with their forms.

        Raises
        ------
        InputError
            When the program lacks a site of the plan, or computes something else there.
        """
        sites = {site.id: site for site in program.sites}
        found = []
        for step in self.steps:
            site = sites.get(step.site)
            if site is None:
                have = f"sites {program.sites[0].id} to {program.sites[-1].id}" if sites else "no site"
                raise InputError(
                    f"the plan names {step.site}, but {program.source} has {have}{self._whose(program)}"
                )
            if site.signature != step.signature:
                raise InputError(
                    f"the plan was made for another computation at {step.site} (anchor {step.anchor},"
                    f" signature {step.signature}) than {program.source} has there (anchor {site.anchor},"
                    f" signature {site.signature}){self._whose(program)}; make a new plan"
                )
            found.append((site, step.form))
        return found

    def _whose(self, program: Program) -> str:
        return "" if fingerprint(program) == self.model else "; it was made for another model"

    def to_json(self) -> str:
        """Return the plan as JSON text."""
        steps = [
            {"site": s.site, "form": str(s.form), "anchor": s.anchor, "signature": s.signature}
            for s in self.steps
        ]
        plan: dict[str, Any] = {"rewriter_plan": VERSION, "model": self.model, "steps": steps}
        if self.rules:
            plan["rules"] = [rule.spec for rule in self.rules]
        return json.dumps(plan, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "plan") -> Plan:
        """Read a plan.

        Parameters
        ----------
        text
            What `to_json` returned.
        where
            What to call it in messages.

        Raises
        ------
        InputError
            When it is no plan, or names a form or parameter that there is not.
        """
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where} is not JSON: {error}") from error
        if not isinstance(found, dict) or "rewriter_plan" not in found:
            raise InputError(f"{where} is not a plan: expected an object with the key rewriter_plan")
        if found["rewriter_plan"] != VERSION:
            raise InputError(f"{where} has version {found['rewriter_plan']!r}; this program reads {VERSION}")
        steps = found.get("steps")
        if not isinstance(steps, list) or not isinstance(found.get("model"), str):
            raise InputError(f"{where}: expected a text 'model' and a list 'steps'")
        made = tuple(_step(item, f"{where}, step {at}") for at, item in enumerate(steps))
        plan = cls(found["model"], made, _rules(found.get("rules", []), where))
        twice = {s.site for s in plan.steps if sum(o.site == s.site for o in plan.steps) > 1}
        if twice:
            raise InputError(f"{where} gives {min(twice)} two forms; expected one per site")
        return plan

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan atomically.

        Raises
        ------
        InputError
            When the file cannot be written.
        """
        target = Path(path)
        try:
            handle, partial = tempfile.mkstemp(prefix=target.name, suffix=".partial", dir=target.parent)
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(self.to_json())
                os.replace(partial, target)
            except OSError:
                os.unlink(partial)
                raise
        except OSError as error:
            raise InputError(f"plan {target} cannot be written: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan file; see `from_json`."""
        text = read_text(path, "a plan")
        return cls.from_json(text, f"plan {path}")


def fingerprint(program: Program) -> str:
    """Return a digest of the graph's structure, without the weights: a fine-tuned model has the same."""
    digest = hashlib.sha256(program.format.encode())
    for node in program.graph.nodes:
        digest.update(repr((node.op, node.inputs, node.outputs)).encode())
    return digest.hexdigest()[:16]


def _rules(names: Any, where: str) -> tuple[Rule, ...]:
    from rewriter.passes import parse_rules

    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{where}: expected 'rules' to be a list of texts")
    found: list[Rule] = []
    for name in names:
        rules = parse_rules(name)
        if rules is None:
            raise InputError(f"{where} names the rule {name!r}, which there is not")
        found += rules
    return tuple(found)


def _step(item: Any, where: str) -> PlanStep:
    from rewriter.passes import parse_form

    names = ("site", "form", "anchor", "signature")
    if not isinstance(item, dict) or any(not isinstance(item.get(name), str) for name in names):
        raise InputError(f"{where}: expected an object of texts {', '.join(names)}")
    try:
        form = parse_form(item["form"])
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return PlanStep(item["site"], form, item["anchor"], item["signature"])
