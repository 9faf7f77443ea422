"""Which sites of a rewritten model are to blame: the smallest set whose reversal meets the budget."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from rewriter.errors import InputError
from rewriter.plan import Plan
from rewriter.program.program import Program
from rewriter.verify.applied import applied_forms
from rewriter.verify.budget import Budget, parse_budgets
from rewriter.verify.code import code_of
from rewriter.verify.comparison import Comparison
from rewriter.verify.data import Data, data_cases
from rewriter.verify.finding import Finding
from rewriter.verify.fingerprint import array_bytes, fingerprint
from rewriter.verify.floors import Floors, Kept
from rewriter.verify.hybrid import Blend
from rewriter.verify.inputs import Case, generated_cases
from rewriter.verify.lockstep import CASES, per_site
from rewriter.verify.minimise import Guarantee, Trial, minimum
from rewriter.verify.noise import Response
from rewriter.verify.per_site import PerSite
from rewriter.verify.progress import Progress, silent
from rewriter.verify.provenance import package_versions
from rewriter.verify.resume import Record, open_record
from rewriter.verify.running import can_run
from rewriter.verify.signature import Match
from rewriter.verify.task import Task, Tasks, load_tasks, measure_task
from rewriter.verify.verdict import Judgement, judge

__all__ = ["Attempt", "BisectReport", "bisect", "deciding_cases"]

LIMIT = 8
"""Inputs that every attempt runs on."""

EXHAUSTIVE = 128
"""Sets of sites that are tried before delta debugging."""

NOISE_CASES = 2
NOISE_SEEDS = 2


@dataclass(frozen=True, slots=True)
class Attempt:
    """One set of sites and what the model was with these as in the original.

    Parameters
    ----------
    reverted
        The set.
    ok
        Whether the budget was met.
    score
        How far over it was, in units of the bound; 0 where it was met.
    verdict
        What was measured.
    """

    reverted: tuple[str, ...]
    ok: bool
    score: float
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {"reverted": list(self.reverted), "ok": self.ok, "score": self.score, "verdict": self.verdict}


@dataclass(frozen=True)
class BisectReport:
    """What to revert.

    Parameters
    ----------
    original, rewritten
        What was compared.
    judged
        ``"budget"`` or ``"noise floor"``.
    blamed
        The set whose reversal meets the budget, in the order of the graph: ids of sites, and stretches
        between them (``before attention.3``) where no sites are enough. Empty if there is nothing to revert,
        None if nothing helps.
    guarantee
        See `rewriter.verify.minimise.Minimum`.
    worst
        The member of ``blamed`` that is furthest off by itself, or None.
    before, after
        The model as it was rewritten, and with the reversal.
    attempts
        Everything that was tried, in order.
    per_site
        Errors of all sites.
    pairing
        How sites of the two models were found to correspond.
    kept
        The plan without the sites to revert, where the sites were rewritten by a plan.
    """

    original: str
    rewritten: str
    judged: str
    blamed: tuple[str, ...] | None
    guarantee: Guarantee
    worst: str | None
    before: Attempt
    after: Attempt | None
    attempts: tuple[Attempt, ...]
    per_site: PerSite
    pairing: str
    kept: Plan | None = field(default=None)

    @property
    def ok(self) -> bool:
        """Whether there is nothing to revert."""
        return self.before.ok

    @property
    def verdict(self) -> str:
        """The result in a sentence."""
        if self.before.ok:
            return f"nothing to revert: {self.before.verdict}"
        if self.blamed is None:
            first = next(iter(self.per_site.blamed), None)
            nearest = f", nearest to {first}" if first is not None else ""
            return f"no set of sites is enough when it is reverted: the fault is elsewhere{nearest}"
        known = {
            "smallest": "no smaller set does",
            "1-minimal": "none of them can be left out, though a smaller set of others may do",
            "none": "",
        }
        return f"revert {', '.join(self.blamed)}: {known[self.guarantee]}"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "original": self.original,
            "rewritten": self.rewritten,
            "ok": self.ok,
            "verdict": self.verdict,
            "judged": self.judged,
            "blamed": None if self.blamed is None else list(self.blamed),
            "guarantee": self.guarantee,
            "worst": self.worst,
            "before": self.before.to_dict(),
            "after": self.after and self.after.to_dict(),
            "pairing": self.pairing,
            "attempts": [a.to_dict() for a in self.attempts],
            "per_site": self.per_site.to_dict(),
        }


def bisect(
    original: Program,
    rewritten: Program,
    data: Data | None = None,
    budget: Iterable[str | Budget] | str | Budget | None = None,
    *,
    plan: Plan | None = None,
    tasks: Tasks | None = None,
    mask: str | Sequence[str] = (),
    match: Match | None = None,
    seed: int = 0,
    limit: int = LIMIT,
    resume: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> BisectReport:
    """Find the smallest set of sites whose reversal meets a budget.

    The two models are cut at their sites, and every attempt runs the rewritten one with some sites computed
    as the original does: nothing is written, and attempts that were made are remembered. Where no sites are
    enough, because something between them was changed, the stretches between sites are tried too.

    Parameters
    ----------
    original, rewritten
        Two models, of different formats if need be. The second may come from elsewhere.
    data
        Recorded inputs; see `rewriter.verify.data`.
    budget
        See `rewriter.verify.budget`. Without one, outputs are held to the noise floor of the original.
    plan
        What made the second of the first, if known: needed where tokens are merged, as such sites cannot be
        reverted one by one; then each attempt applies a part of the plan.
    tasks, mask, match
        As for `rewriter.validate`.
    seed
        Of everything random.
    limit
        Inputs that every attempt runs on.
    resume
        A file in which attempts are recorded, so that an interrupted search goes on.
    progress
        Told before every attempt.

    Returns
    -------
    BisectReport
        The set, and what is known of its size.

    Raises
    ------
    InputError
        When signatures differ, data or budgets do not fit, a model with merged tokens comes without its plan,
        or the models differ and there is no site to revert.
    """
    tell, budgets = progress or silent, parse_budgets(budget)
    masks = (mask,) if isinstance(mask, str) else tuple(mask)
    cases = deciding_cases(original, data, seed, limit, bool(budgets))
    source = (
        _Replanned(original, rewritten, plan, match)
        if _spans(rewritten, plan)
        else _Blended(original, rewritten, match)
    )
    tell("comparing sites", 0, 0)
    most = min(limit, CASES)
    sites = per_site(original, rewritten, cases, limit=most, statistics=False, seed=seed, match=match)
    search = _Search(original, source.compared, cases, budgets, load_tasks(tasks), masks, seed, tell)
    with open_record(resume, search.key(rewritten, match, resume)) as record:
        search.record = record
        found = minimum(_ranked(source.sites, sites), search.attempt, exhaustive=EXHAUSTIVE)
        if found.members is None and source.lacking is not None:
            verdict = search.known[frozenset()].verdict
            raise InputError(
                f"nothing can be reverted, as {source.lacking}, and the models differ: {verdict}"
            )
        if found.members is None and source.stretches:
            units = _ranked((*source.stretches, *source.sites), sites)
            found = minimum(units, search.attempt, exhaustive=EXHAUSTIVE)
        record.finish()
    members = None if found.members is None else tuple(u for u in source.order if u in found.members)
    return BisectReport(
        original=original.source,
        rewritten=rewritten.source,
        judged="budget" if budgets else "noise floor",
        blamed=members,
        guarantee=found.guarantee,
        worst=found.members[0] if found.members else None,
        before=search.known[frozenset()],
        after=search.known[frozenset(members)] if members else None,
        attempts=tuple(search.known.values()),
        per_site=sites,
        pairing=source.pairing,
        kept=_without(plan, members or ()),
    )


class _Blended:
    """Sites are reverted one by one, in place."""

    def __init__(self, original: Program, rewritten: Program, match: Match | None) -> None:
        for program in (original, rewritten):
            if program.format == "module":
                raise InputError(
                    f"{program.source} is run as it is, so that no site of it can be reverted; give (module,"
                    " args), which is traced"
                )
        self._blend, self._match = Blend(original, rewritten, match), match
        self.sites, self.stretches = self._blend.sites, self._blend.stretches
        self.pairing = str(self._blend.pairing)

    @property
    def lacking(self) -> str | None:
        """Why nothing can be reverted, or None."""
        if self.sites:
            return None
        first, second = self._blend.original.source, self._blend.rewritten.source
        if not self._blend.missing:
            return f"{first} has no sites"
        return f"no site of {first} is known in {second}: {next(iter(self._blend.missing.values()))}"

    @property
    def order(self) -> tuple[str, ...]:
        names = [u for s in self.sites for u in (f"before {s}", s)]
        return (*names, *(u for u in self.stretches if u not in names))

    def compared(self, reverted: frozenset[str], masks: Sequence[str]) -> Comparison:
        candidate = self._blend.hybrid(reverted)
        return Comparison.of(self._blend.original, candidate, None, self._match, masks)


class _Replanned:
    """Sites change what later ones are given, so that every attempt applies what is left of the plan."""

    stretches: tuple[str, ...] = ()
    lacking: str | None = None

    def __init__(self, original: Program, rewritten: Program, plan: Plan | None, match: Match | None) -> None:
        if plan is None:
            raise InputError(
                f"{rewritten.source} merges tokens, so its sites cannot be reverted one by one; give the plan"
                " that made it with --plan"
            )
        self._original, self._rewritten, self._plan, self._match = original, rewritten, plan, match
        self.sites = tuple(step.site for step in plan.steps)
        self.order = self.sites
        self.pairing = "sites taken from the plan"

    def compared(self, reverted: frozenset[str], masks: Sequence[str]) -> Comparison:
        if not reverted:
            return Comparison.of(self._original, self._rewritten, None, self._match, masks)
        # what is made here has the names of the original
        return Comparison.of(self._original, self._candidate(reverted), None, None, masks)

    def _candidate(self, reverted: frozenset[str]) -> Program:
        from rewriter.engine import rewrite

        rest = _without(self._plan, reverted)
        assert rest is not None
        return rewrite(self._original, rest, verify=False)[0] if rest.steps else self._original


class _Search:
    """Attempts, each made once."""

    def __init__(
        self,
        original: Program,
        compared: Callable[[frozenset[str], Sequence[str]], Comparison],
        cases: Sequence[Case],
        budgets: Sequence[Budget],
        tasks: Mapping[str, Task],
        masks: Sequence[str],
        seed: int,
        tell: Progress,
    ) -> None:
        self._original, self._compared, self._cases = original, compared, cases
        self._budgets, self._tasks, self._masks = tuple(budgets), tasks, masks
        self._seed, self._tell = seed, tell
        self._noise: Mapping[int, list[Response]] | None = None
        self.known: dict[frozenset[str], Attempt] = {}
        self.record = Record(None)

    def key(self, rewritten: Program, match: Match | None, resume: object) -> str:
        """Return what this work is."""
        if resume is None:
            return ""
        digest = hashlib.sha256("\n".join(map(fingerprint, (self._original, rewritten))).encode())
        asked = (tuple(map(str, self._budgets)), sorted(self._tasks), self._masks, match)
        digest.update(repr(asked).encode())
        digest.update(repr((code_of(self._tasks.values()), package_versions())).encode())
        for case in self._cases:
            for part in (case.name.encode(), *array_bytes(case.inputs)):
                digest.update(part)
        return digest.hexdigest()

    def attempt(self, reverted: frozenset[str]) -> Trial:
        """Return how a set does."""
        if reverted not in self.known:
            name = ", ".join(sorted(reverted))
            self._tell(f"attempt {len(self.known) + 1}", 0, 0)
            held = self.record.get(name)
            if held is None:
                found = self._judged(self._compared(reverted, self._masks))
                held = [found.ok, _score(found), _measured(found)]
                self.record.put(name, held)
            try:
                ok, score, verdict = held
                made = Attempt(tuple(sorted(reverted)), bool(ok), float(score), str(verdict))
            except (TypeError, ValueError):
                raise self.record.damaged(name) from None
            self.known[reverted] = made
        found_ = self.known[reverted]
        return Trial(found_.ok, found_.score)

    def _judged(self, comparison: Comparison) -> Judgement:
        findings, kept = [], []
        for case in self._cases:
            finding, expected = comparison.find(case)
            findings.append(finding)
            kept.append(Kept("", case.inputs, expected))
        scores = [
            row
            for name, task in self._tasks.items()
            for row in measure_task(name, task, self._original, comparison.rewritten)
        ]
        if self._budgets:
            group = "data" if self._cases[0].group == "data" else "random"
            return judge(findings, {}, "budget", self._budgets, scores, group)
        return judge(findings, self._floor(comparison, findings, kept), "noise floor", (), scores)

    def _floor(
        self, comparison: Comparison, findings: Sequence[Finding], kept: Sequence[Kept]
    ) -> Mapping[int, list[Response]]:
        """Return the noise floor, which is the original's and so the same for every attempt."""
        if self._noise is None:
            floors = Floors(NOISE_CASES, range(self._seed, self._seed + NOISE_SEEDS))
            for at, (finding, case) in enumerate(zip(findings, kept, strict=True)):
                floors.consider(at, finding, case)
            self._noise = floors.measure(comparison, Record(None), self._tell)
        return self._noise


def deciding_cases(original: Program, data: Data | None, seed: int, limit: int, budgets: bool) -> list[Case]:
    """Return the inputs that decide.

    Parameters
    ----------
    original
        Whose inputs.
    data
        Recorded inputs, which decide where there are any.
    seed
        Of those that are made up.
    limit
        How many.
    budgets
        Whether there is a budget, for which the extreme ones of those that are made up do not count.

    Raises
    ------
    InputError
        When there are none.
    """
    if data is not None:
        found = list(islice(data_cases(data, original), limit))
    else:
        made = list(generated_cases(original, seed, lambda inputs: can_run(original, inputs)))
        found = [c for c in made if c.group == "random"]
        found += [c for c in made if c.group != "random" and not budgets]
    if not found:
        raise InputError(f"there is no input to compare {original.source} on; give some with --data")
    return found[:limit]


def _spans(rewritten: Program, plan: Plan | None) -> bool:
    """Whether a form was applied that changes what later sites are given."""
    from rewriter.passes import parse_form

    if plan is not None and any(step.form.spans for step in plan.steps):
        return True
    for applied in applied_forms(rewritten):
        try:
            if parse_form(applied.form).spans:
                return True
        except InputError:
            continue  # of another version
    return False


def _ranked(units: Sequence[str], sites: PerSite) -> list[str]:
    """Return units, the most suspicious first: what is at fault by itself, then by the error alone."""
    errors: dict[str, tuple[float, float]] = {}
    for site in sites.sites:
        found = site.local or site.accumulated
        excess = site.error / site.tolerance if site.error and site.tolerance and site.ok is False else 0.0
        errors[site.site] = (excess, found.distance.rel if found else 0.0)
    for stretch in sites.stretches:
        name = f"before {stretch.before}" if stretch.before else f"after {stretch.after}"
        rel = stretch.distance.rel if stretch.distance is not None else 0.0
        errors[name] = (rel if stretch.ok is False else 0.0, rel)
    return sorted(units, key=lambda u: tuple(-x for x in errors.get(u, (0.0, 0.0))))


def _score(found: Judgement) -> float:
    """Return how far over budget, in units of the bound."""
    if found.ok:
        return 0.0
    over = [
        abs(o.measured - o.budget.bound) / max(abs(o.budget.bound), 1e-12) for o in found.budget if not o.ok
    ]
    over += [
        o.distance.max_abs / o.tolerance
        for case in found.cases
        for o in case.outputs
        if o.distance is not None and o.tolerance
    ]
    return max(over, default=1e300)


def _measured(found: Judgement) -> str:
    """Return what decided: the figures that budgets are about, else the verdict."""
    rows = [
        f"{o.budget.metric}{f' of {o.output}' if o.output else ''} {o.measured:.4g}" for o in found.budget
    ]
    if rows or found.ok:
        return ", ".join(rows) or found.verdict
    failed = [
        (o.distance.max_abs, o.tolerance, o.output)
        for case in found.cases
        for o in case.outputs
        if not o.ok and o.distance is not None and not o.distance.pattern and o.tolerance
    ]
    if not failed:
        return found.verdict
    error, tolerance, output = max(failed, key=lambda row: row[0] / row[1])
    return f"error {error:.3g} of {output}, {tolerance:.3g} allowed"


def _without(plan: Plan | None, reverted: Iterable[str]) -> Plan | None:
    gone = frozenset(reverted)
    if plan is None:
        return None
    return replace(plan, steps=tuple(step for step in plan.steps if step.site not in gone))
