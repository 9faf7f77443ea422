"""Whether a budget that holds on recorded inputs may be expected to hold on others like them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from statistics import fmean

from rewriter.program.program import Program
from rewriter.verify.budget import Budget
from rewriter.verify.data import Data, data_cases
from rewriter.verify.distance import Distance, Tally
from rewriter.verify.metrics import is_floating
from rewriter.verify.running import run

__all__ = ["Recorded", "expected_to_hold"]

CASES = 4
"""Recorded inputs that are looked at."""


class Recorded:
    """What a program gives for recorded inputs.

    Parameters
    ----------
    program
        The original.
    data
        Inputs; the first few are taken.
    """

    def __init__(self, program: Program, data: Data) -> None:
        self._inputs = [case.inputs for case in islice(data_cases(data, program), CASES)]
        self._outputs = [
            {name: x for name, x in zip(program.output_names, run(program, inputs), strict=True)}
            for inputs in self._inputs
        ]

    def allow(self, budget: Budget, program: Program) -> bool:
        """Whether another program with the same outputs may be expected to keep the budget."""
        return expected_to_hold(budget, [self._measured(program, at) for at in range(len(self._inputs))])

    def _measured(self, program: Program, at: int) -> dict[str, Tally]:
        measured = {}
        found = run(program, self._inputs[at])
        for (name, x), y in zip(self._outputs[at].items(), found, strict=True):
            if is_floating(x.dtype):
                measured[name] = Tally()
                measured[name].add(x, y)
        return measured


def expected_to_hold(budget: Budget, cases: Sequence[Mapping[str, Tally]]) -> bool:
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

    Source: Efron and Stein, The Jackknife Estimate of Variance, 1981.
    """
    pooled = budget.check(_pooled(cases))
    if not pooled.ok or len(cases) == 1:
        return pooled.ok
    without = [_pooled([*cases[:at], *cases[at + 1 :]]) for at in range(len(cases))]
    error = _standard_error([budget.check(outputs).measured for outputs in without])
    return budget.met(pooled.measured + (error if budget.sign == "<=" else -error))


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
