"""Whether a budget that holds on recorded inputs may be expected to hold on others like them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from math import inf, isfinite, nextafter
from statistics import fmean

from rewriter.merging.weave import Merging
from rewriter.program.program import Program
from rewriter.verify.budget import METRICS, Budget
from rewriter.verify.data import Data, data_cases
from rewriter.verify.distance import Distance, Tally
from rewriter.verify.fingerprint import array_bytes
from rewriter.verify.metrics import is_floating
from rewriter.verify.progress import Progress, silent
from rewriter.verify.resume import Record
from rewriter.verify.running import run

__all__ = ["Recorded", "RecordedLosses", "expected_to_hold", "loss"]

CASES = 6
"""Recorded inputs that are looked at."""

LARGEST = 300.0
"""Powers of ten of the noise against the signal that are told apart."""


class Recorded:
    """What a program gives for recorded inputs.

    Parameters
    ----------
    program
        The original.
    data
        Inputs; the first few are taken.

    Attributes
    ----------
    names
        Of the inputs.
    """

    def __init__(self, program: Program, data: Data) -> None:
        cases = list(islice(data_cases(data, program), CASES))
        self.names = [case.name for case in cases]
        self._inputs = [case.inputs for case in cases]
        self._outputs = [
            {name: x for name, x in zip(program.output_names, run(program, inputs), strict=True)}
            for inputs in self._inputs
        ]

    def digest(self, at: int) -> str:
        """Return what an input is, for a record of what was measured on it."""
        digest = hashlib.sha256()
        for part in array_bytes(self._inputs[at]):
            digest.update(part)
        return digest.hexdigest()

    def measured(self, program: Program, at: int) -> dict[str, Tally]:
        """Return how far another program with the same outputs is from the original on one input."""
        measured = {}
        found = run(program, self._inputs[at])
        for (name, x), y in zip(self._outputs[at].items(), found, strict=True):
            if is_floating(x.dtype):
                measured[name] = Tally()
                measured[name].add(x, y)
        return measured


class RecordedLosses:
    """How far schedules are from the original on recorded inputs; see `rewriter.merging.search.Losses`.

    Parameters
    ----------
    recorded
        What the original gives.
    budget
        The bound.
    merged
        Gives the program with a schedule.
    margin
        See `expected_to_hold`.
    progress
        Told about every run.
    record
        Of what was measured before, and is now; None keeps nothing.
    """

    def __init__(
        self,
        recorded: Recorded,
        budget: Budget,
        merged: Callable[[Sequence[Merging]], Program],
        margin: float = 1.0,
        progress: Progress = silent,
        record: Record | None = None,
    ) -> None:
        self._recorded, self._budget, self._merged, self._progress = recorded, budget, merged, progress
        self._margin, self._record = margin, Record(None) if record is None else record
        self._cases = range(len(recorded.names))
        self._found: dict[tuple[Merging, ...], dict[int, dict[str, Tally]]] = {}
        self._last: tuple[tuple[Merging, ...], Program] | None = None
        self._hardest, self._proportion = 0, 1.0
        self.runs = 0

    def of_all(self, mergings: Sequence[Merging]) -> float:
        """Return the loss on all inputs together, with its margin."""
        cases = [self._tallies(mergings, at) for at in self._cases]
        alone = [loss(self._budget, [case]) for case in cases]
        found = loss(self._budget, cases, self._margin)
        self._hardest = max(self._cases, key=alone.__getitem__)
        largest = alone[self._hardest]
        self._proportion = found / largest if 0 < largest < inf and found < inf else 1.0
        return found

    def of_hardest(self, mergings: Sequence[Merging]) -> float:
        """Return the loss on the input that lost most last time, in proportion to what all lost then."""
        return loss(self._budget, [self._tallies(mergings, self._hardest)]) * self._proportion

    def summary(self, mergings: Sequence[Merging]) -> str:
        """Return in a sentence what was measured with a schedule, and which input loses most with it."""
        cases = [self._tallies(mergings, at) for at in self._cases]
        measured, error = _with_error(self._budget, cases)
        name = self._budget.metric
        if len(cases) == 1:
            return f"{name} is {measured:.4g} on the one recorded input; with more there is a margin"
        hardest = max(self._cases, key=lambda at: loss(self._budget, [cases[at]]))
        without = [*cases[:hardest], *cases[hardest + 1 :]]
        alone, rest = (self._budget.check(_pooled(x)).measured for x in ([cases[hardest]], without))
        return (
            f"{name} is {measured:.4g} on {len(cases)} recorded inputs, with a standard error of {error:.2g};"
            f" {self._recorded.names[hardest]} loses most ({alone:.4g}, the others {rest:.4g});"
            f" {self.runs} runs"
        )

    def _tallies(self, mergings: Sequence[Merging], at: int) -> dict[str, Tally]:
        key = tuple(mergings)
        found = self._found.setdefault(key, {})
        if at not in found:
            self._progress("choosing how many tokens to merge: runs", self.runs, 0)
            found[at] = self._kept(key, at) if self._record.kept else self._run(key, at)
            self.runs += 1
        return found[at]

    def _kept(self, key: tuple[Merging, ...], at: int) -> dict[str, Tally]:
        """Return what is recorded; what is not is measured and written down."""
        name = " ".join([self._recorded.digest(at), *(f"{m.site}:{m.r}" for m in key)])
        known = self._record.get(name)
        if known is None:
            measured = self._run(key, at)
            self._record.put(name, {output: tally.state() for output, tally in measured.items()})
            return measured
        try:
            return {output: Tally.restored(state) for output, state in known.items()}
        except (AttributeError, TypeError, ValueError):
            raise self._record.damaged("a schedule") from None

    def _run(self, key: tuple[Merging, ...], at: int) -> dict[str, Tally]:
        if self._last is None or self._last[0] != key:
            self._last = key, self._merged(key)
        return self._recorded.measured(self._last[1], at)


def loss(budget: Budget, cases: Sequence[Mapping[str, Tally]], margin: float = 1.0) -> float:
    """Return how much of what a budget allows is used up, with the margin of `expected_to_hold`.

    Up to 1 where the budget is expected to hold, more where it is not. What is lost is how much a measure
    falls short of its best value, or the noise against the signal for one in dB.
    """
    share = _share(budget, cases, margin)
    if not expected_to_hold(budget, cases, margin):
        return max(share, nextafter(1.0, inf))
    return min(share, 1.0)


def _share(budget: Budget, cases: Sequence[Mapping[str, Tally]], margin: float) -> float:
    lost, allowed = _lost(budget, _cautious(budget, cases, margin)), _lost(budget, budget.bound)
    if not isfinite(lost):
        return inf
    return lost / allowed if allowed > 0 else (0.0 if lost <= 0 else inf)


def _lost(budget: Budget, measured: float) -> float:
    metric = METRICS[budget.metric]
    if metric.direction == "<=":
        return measured
    return metric.high - measured if isfinite(metric.high) else 10 ** min(-measured / 20, LARGEST)


def expected_to_hold(budget: Budget, cases: Sequence[Mapping[str, Tally]], margin: float = 1.0) -> bool:
    """Whether a budget holds on all inputs together, by more than the standard error of what is measured.

    Inputs are pooled as `rewriter.validate` pools them, so that what is chosen by it passes there. The
    standard error is the jackknife's, from the same measure with each input left out in turn; of one input
    it is not known, and taken for 0.

    Parameters
    ----------
    budget
        The bound.
    cases
        Of each recorded input: what was measured, by output.
    margin
        By how many standard errors; 0 is what `rewriter.validate` asks for.

    Source: Efron and Stein, The Jackknife Estimate of Variance, 1981.
    """
    if not budget.check(_pooled(cases)).ok:
        return False
    return budget.met(_cautious(budget, cases, margin))


def _cautious(budget: Budget, cases: Sequence[Mapping[str, Tally]], margin: float) -> float:
    """Return what is measured, worse by so many standard errors."""
    if not margin:
        return budget.check(_pooled(cases)).measured
    measured, error = _with_error(budget, cases)
    return measured + margin * (error if budget.sign == "<=" else -error)


def _with_error(budget: Budget, cases: Sequence[Mapping[str, Tally]]) -> tuple[float, float]:
    """Return what is measured on all inputs together, and its standard error."""
    measured = budget.check(_pooled(cases)).measured
    if len(cases) == 1:
        return measured, 0.0
    without = [_pooled([*cases[:at], *cases[at + 1 :]]) for at in range(len(cases))]
    return measured, _standard_error([budget.check(outputs).measured for outputs in without])


def _pooled(cases: Sequence[Mapping[str, Tally]]) -> dict[str, Distance]:
    tallies: dict[str, Tally] = {}
    for case in cases:
        for name, tally in case.items():
            tallies.setdefault(name, Tally()).merge(tally)
    return {name: tally.distance() for name, tally in tallies.items()}


def _standard_error(measured: Sequence[float]) -> float:
    """Return the jackknife's standard error of a measure, from its values with one input left out."""
    if len(set(measured)) == 1:
        return 0.0
    mean, count = fmean(measured), len(measured)
    return float(((count - 1) / count * sum((m - mean) ** 2 for m in measured)) ** 0.5)
