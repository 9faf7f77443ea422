"""Comparing two whole models on random, adversarial and recorded inputs, in their native runtimes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from rewriter.errors import InputError
from rewriter.program.program import Arrays, Program
from rewriter.verify.applied import applied_forms
from rewriter.verify.budget import Budget, Outcome, parse_budgets
from rewriter.verify.data import Data, data_cases
from rewriter.verify.distance import Tally, distance
from rewriter.verify.inputs import LENGTHS, Case, generated_cases
from rewriter.verify.metrics import agreement, is_floating
from rewriter.verify.noise import MODEL_FACTOR, floor, response
from rewriter.verify.progress import Progress, silent
from rewriter.verify.running import RunError, can_run, run, run_positional
from rewriter.verify.signature import match_signatures
from rewriter.verify.source import source_runner
from rewriter.verify.validation import AppliedForm, CaseReport, OutputReport, Step, ValidationReport

if TYPE_CHECKING:
    import torch

__all__ = ["validate"]

NOISE_CASES = 8
"""Cases that the response to last bits is measured on; the others take the largest relative one."""

LEGS = ("source → original", "source → rewritten")


def validate(
    original: Program,
    rewritten: Program,
    data: Data | None = None,
    budget: Iterable[str | Budget] | str | Budget | None = None,
    source: torch.nn.Module | Program | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ValidationReport:
    """Compare two models of the same signature and judge the second.

    Without a budget, a model that claims to be exact is held to the noise floor of the original
    (`rewriter.verify.noise`) on every case, and its integer and boolean outputs must be equal. With a
    budget, that is what counts: on the data if there is any, else on the random cases, pooled. A model
    that says it is approximate and has no budget is measured and reported, not judged.

    Parameters
    ----------
    original, rewritten
        Two programs; of different formats if need be. Inputs and outputs are matched by name, or by
        position where names differ.
    data
        Recorded inputs: see `rewriter.verify.data`.
    budget
        See `rewriter.verify.budget`.
    source
        What the original was captured from: compared with both, because exporters are not neutral.
    seed
        Of the generated inputs and perturbations.
    progress
        Told what is being done.

    Returns
    -------
    ValidationReport
        The verdict and everything it rests on.

    Raises
    ------
    InputError
        When signatures differ, data does not fit, a budget cannot be read, or the original can run
        none of the cases.
    """
    budgets, tell = parse_budgets(budget), progress or silent
    bench = _Bench(original, rewritten)
    known = {(a.site, a.form) for a in applied_forms(original)}
    applied = applied_forms(rewritten)
    exact = all(a.fidelity == "exact" for a in applied if (a.site, a.form) not in known)
    judged = "budget" if budgets else "noise floor" if exact else "nothing"
    three_way = _ThreeWay(original, source) if source is not None else None

    compared: list[_Compared] = []
    kept: dict[int, tuple[Arrays, list[np.ndarray]]] = {}
    pools: dict[str, dict[str, _Pool]] = {}
    for case in _cases(original, data, seed, _lengths(applied)):
        tell("comparing", len(compared), 0)
        found, expected, actual = bench.compare(case, pools.setdefault(case.group, {}))
        if expected is not None and judged == "noise floor" and len(kept) < NOISE_CASES:
            kept[len(compared)] = (case.inputs, expected)
        if three_way is not None and expected is not None and actual is not None:
            three_way.compare(case.inputs, expected, actual)
        compared.append(found)
    if all(c.skipped for c in compared):
        reason = compared[0].report.error if compared else "it has no inputs"
        raise InputError(
            f"{original.source} could be run on no generated input ({reason}); give some with --data"
        )
    if judged == "noise floor":
        moved = response(original, list(kept.values()), seeds=range(seed, seed + 3), progress=tell)
        compared = _hold_to(compared, dict(zip(kept, moved, strict=True)))

    deciding = "data" if data is not None else "random"
    distances = {
        name: pool.tally.distance() for name, pool in pools.get(deciding, {}).items() if pool.floating
    }
    outcomes = tuple(b.check(distances) for b in budgets)
    reports = tuple(c.report for c in compared)
    ok, verdict = _verdict(judged, deciding, reports, outcomes)
    return ValidationReport(
        original=original.source,
        rewritten=rewritten.source,
        exact=exact,
        judged=judged,
        ok=ok,
        verdict=verdict,
        summary={group: _summary(group, outputs, reports) for group, outputs in pools.items() if outputs},
        cases=reports,
        budget=outcomes,
        sites=applied,
        steps=three_way.steps() if three_way is not None else (),
    )


@dataclass
class _Pool:
    """One output over many cases."""

    floating: bool
    tally: Tally = field(default_factory=Tally)
    shares: list[float] = field(default_factory=list)

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        if self.floating:
            self.tally.add(x, y)
        else:
            self.shares.append(agreement(x, y))


@dataclass(frozen=True)
class _Compared:
    """One case, with the floor and the largest value of each output of the original."""

    report: CaseReport
    skipped: bool = False
    floors: tuple[float, ...] = ()
    peaks: tuple[float, ...] = ()


class _Bench:
    """Runs both programs on the same case."""

    def __init__(self, original: Program, rewritten: Program) -> None:
        self._original, self._rewritten = original, rewritten
        self._matching = match_signatures(original, rewritten)

    def compare(
        self, case: Case, pools: dict[str, _Pool]
    ) -> tuple[_Compared, list[np.ndarray] | None, list[np.ndarray] | None]:
        """Return what was found, and the outputs of both as far as they could be run."""
        try:
            expected = run(self._original, case.inputs)
        except RunError as error:
            if case.group == "data":
                raise InputError(f"data {case.name}: {error}") from error
            return (
                _Compared(CaseReport(case.name, case.group, (), f"skipped: {error}", True), skipped=True),
                None,
                None,
            )
        try:
            actual = run_positional(self._rewritten, [case.inputs[name] for name in self._matching.inputs])
        except RunError as error:
            return _Compared(CaseReport(case.name, case.group, (), str(error), False)), expected, None
        actual = [actual[at] for at in self._matching.outputs]
        names = self._original.graph.outputs
        for name, x, y in zip(names, expected, actual, strict=True):
            if x.shape != y.shape:
                error_ = f"output {name!r} has shape {x.shape} in the original, {y.shape} in the other"
                return _Compared(CaseReport(case.name, case.group, (), error_, False)), expected, None
        outputs = []
        for name, x, y in zip(names, expected, actual, strict=True):
            pools.setdefault(name, _Pool(is_floating(x.dtype))).add(x, y)
            outputs.append(_output(name, x, y))
        report = CaseReport(case.name, case.group, tuple(outputs), None, all(o.ok for o in outputs))
        return (
            _Compared(report, False, tuple(map(_floor, expected)), tuple(map(_peak, expected))),
            expected,
            actual,
        )


class _ThreeWay:
    """Compares both models with what they came from."""

    def __init__(self, original: Program, source: torch.nn.Module | Program) -> None:
        self._names = original.graph.outputs
        self._run = source_runner(source, original.graph.inputs)
        self._legs: dict[str, dict[str, Tally]] = {leg: {} for leg in LEGS}

    def compare(self, inputs: Arrays, expected: list[np.ndarray], actual: list[np.ndarray]) -> None:
        truth = self._run(inputs)
        if len(truth) != len(expected):
            raise InputError(f"the source gives {len(truth)} outputs and the original {len(expected)}")
        for leg, outputs in zip(LEGS, (expected, actual), strict=True):
            for name, x, y in zip(self._names, truth, outputs, strict=True):
                if x.shape != y.shape:
                    raise InputError(
                        f"output {name!r} has shape {x.shape} in the source and {y.shape} in {leg}"
                    )
                if is_floating(x.dtype):
                    self._legs[leg].setdefault(name, Tally()).add(x, y)

    def steps(self) -> tuple[Step, ...]:
        return tuple(
            Step(leg, {n: t.distance() for n, t in tallies.items()}) for leg, tallies in self._legs.items()
        )


def _lengths(applied: Sequence[AppliedForm]) -> list[int]:
    """Return lengths to try: with one, second, at which every form that was applied does something."""
    from rewriter.passes import parse_form

    telling = []
    for site in applied:
        try:
            telling.append(parse_form(site.form).telling_length or 0)
        except InputError:
            # written by another version: its form is no longer known here
            continue
    longest = max(telling, default=0)
    return [LENGTHS[0], longest, *LENGTHS[1:]] if longest else list(LENGTHS)


def _cases(original: Program, data: Data | None, seed: int, lengths: Sequence[int]) -> Iterator[Case]:
    try:
        yield from generated_cases(original, seed, lambda inputs: can_run(original, inputs), lengths)
    except InputError:
        # shapes that are not declared are no obstacle when real inputs are given
        if data is None:
            raise
    if data is not None:
        yield from data_cases(data, original)


def _output(name: str, x: np.ndarray, y: np.ndarray) -> OutputReport:
    if is_floating(x.dtype):
        found = distance(x, y)
        return OutputReport(name, found, None, None, found.pattern == 0)
    share = agreement(x, y)
    return OutputReport(name, None, share, None, share == 1.0)


def _floor(x: np.ndarray) -> float:
    return floor(x, x.dtype) if is_floating(x.dtype) else 0.0


def _peak(x: np.ndarray) -> float:
    return float(np.abs(x[np.isfinite(x)]).max(initial=0)) if is_floating(x.dtype) else 0.0


def _hold_to(compared: Sequence[_Compared], moved: Mapping[int, Sequence[float]]) -> list[_Compared]:
    """Give floating outputs their tolerance: as measured, else by the largest relative response."""
    count = max((len(c.peaks) for c in compared), default=0)
    rates = [
        max(
            (
                row[k] / compared[at].peaks[k]
                for at, row in moved.items()
                if compared[at].peaks and compared[at].peaks[k]
            ),
            default=0.0,
        )
        for k in range(count)
    ]
    held = []
    for at, case in enumerate(compared):
        outputs = []
        for k, output in enumerate(case.report.outputs):
            if output.distance is None:
                outputs.append(output)
                continue
            noise = moved[at][k] if at in moved else rates[k] * case.peaks[k]
            tolerance = MODEL_FACTOR * max(noise, case.floors[k])
            outputs.append(
                replace(output, tolerance=tolerance, ok=output.ok and output.distance.max_abs <= tolerance)
            )
        ok = case.report.ok and all(o.ok for o in outputs)
        held.append(replace(case, report=replace(case.report, outputs=tuple(outputs), ok=ok)))
    return held


def _summary(group: str, pools: Mapping[str, _Pool], cases: Sequence[CaseReport]) -> tuple[OutputReport, ...]:
    """Return one line per output: pooled measures, and the tolerance of its worst case."""
    rows = []
    for name, pool in pools.items():
        mine = [o for c in cases if c.group == group for o in c.outputs if o.output == name]
        worst = max(mine, key=_excess)
        found = pool.tally.distance() if pool.floating else None
        share = float(np.mean(pool.shares)) if not pool.floating else None
        rows.append(OutputReport(name, found, share, worst.tolerance, all(o.ok for o in mine)))
    return tuple(rows)


def _excess(output: OutputReport) -> float:
    if output.distance is None or not output.tolerance:
        return 0.0
    return output.distance.max_abs / output.tolerance


def _verdict(
    judged: str, deciding: str, cases: Sequence[CaseReport], outcomes: Sequence[Outcome]
) -> tuple[bool, str]:
    broken = next((c for c in cases if c.error is not None and not c.ok), None)
    if broken is not None:
        return False, f"on {broken.name}: {broken.error}"
    ran = [c for c in cases if c.error is None]
    if judged == "budget":
        missed = [str(o) for o in outcomes if not o.ok]
        if missed:
            return False, f"over budget on {deciding} inputs: " + "; ".join(missed)
        return True, f"within budget on {deciding} inputs: " + "; ".join(map(str, outcomes))
    if judged == "nothing":
        return True, f"approximate, and no budget was given: measured on {len(ran)} inputs, not judged"
    failed = [(c, o) for c in ran for o in c.outputs if not o.ok]
    if not failed:
        return True, f"equal within the noise floor of the original on {len(ran)} inputs"
    case, output = max(failed, key=lambda pair: _excess(pair[1]))
    return False, f"on {case.name}, output {output.output!r}: {_complaint(output)}"


def _complaint(output: OutputReport) -> str:
    if output.distance is None:
        return f"{1 - (output.agreement or 0.0):.2%} of the elements differ"
    if output.distance.pattern:
        return f"{output.distance.pattern} elements are NaN or inf in one model only"
    return f"the largest error {output.distance.max_abs:.2e} is over the tolerance {output.tolerance:.2e}"
