"""Comparing two whole models on random, adversarial and recorded inputs, in their native runtimes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rewriter.errors import InputError
from rewriter.forms import trial_length
from rewriter.program.program import Program
from rewriter.verify.applied import applied_forms
from rewriter.verify.binding import numpy_dtype
from rewriter.verify.budget import Budget, parse_budgets
from rewriter.verify.code import code_of
from rewriter.verify.comparison import Comparison
from rewriter.verify.data import Data, data_cases, data_count
from rewriter.verify.evidence import illustrated
from rewriter.verify.finding import Finding
from rewriter.verify.fingerprint import array_bytes, fingerprint
from rewriter.verify.floors import Floors, Kept
from rewriter.verify.heads import Heads, check_heads
from rewriter.verify.inputs import LENGTHS, Case, generated_cases
from rewriter.verify.metrics import is_floating
from rewriter.verify.models import Model, as_program, as_programs
from rewriter.verify.progress import Progress, silent
from rewriter.verify.provenance import package_versions
from rewriter.verify.repeatability import unrepeatable
from rewriter.verify.resume import Record, open_record
from rewriter.verify.running import can_run
from rewriter.verify.signature import Match
from rewriter.verify.task import Tasks, load_tasks, measure_task
from rewriter.verify.validation import AppliedForm, TaskReport, ValidationReport
from rewriter.verify.verdict import judge

if TYPE_CHECKING:
    from rewriter.verify.noise import Response
    from rewriter.verify.task import Task

__all__ = ["validate"]

NOISE_CASES = {"noise floor": 5, "budget": 2, "nothing": 2}
"""Inputs of each group that the response to last bits is measured on, by what is judged."""

NOISE_SEEDS = {"noise floor": 3, "budget": 1, "nothing": 1}
"""Perturbations of the weights, by what is judged: where the floor decides, it is measured better."""

TWICE = "run twice"
"""Under which it is recorded whether the models give the same twice."""


def validate(
    original: Model,
    rewritten: Model,
    data: Data | None = None,
    budget: Iterable[str | Budget] | str | Budget | None = None,
    source: Model | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    *,
    tasks: Tasks | None = None,
    mask: str | Sequence[str] = (),
    match: Match | None = None,
    sizes: Mapping[str, Sequence[int]] | None = None,
    resume: str | os.PathLike[str] | None = None,
    evidence: bool = False,
    heads: Heads | None = None,
) -> ValidationReport:
    """Compare two models of the same signature and judge the second.

    Without a budget, a model that claims to be exact is held to the noise floor of the original
    (`rewriter.verify.noise`) on every case, and its integer and boolean outputs must be equal wherever the
    last bits do not decide. With a budget, that is what counts: on the data if there is any, else on the
    random cases, pooled. A model that says it is approximate and has no budget is measured and reported,
    not judged.

    Parameters
    ----------
    original, rewritten
        Two models, of different kinds if need be: see `rewriter.verify.models`. Inputs and outputs are
        matched by name, or by position where all names differ.
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
    tasks
        What the models are for, measured on both: see `rewriter.verify.task`.
    mask
        Inputs that are 0 where a position is padding: outputs do not count there
        (`rewriter.verify.padding`).
    match
        Names that belong together: see `rewriter.verify.signature`.
    sizes
        Numbers to try for dimensions or axes (``{"input_ids.1": [64]}``) in place of those chosen here.
    resume
        A file that finished work is recorded in while this runs, and removed at the end. A call that was
        interrupted goes on from it; the result is the same.
    evidence
        Whether to record for the page, besides the measures, every site in both models, times, and the graph
        around the worst site, as ``rewriter validate --report`` does.
    heads
        With ``evidence``: heads whose attention is shown, by the id of their site; by default the
        worst one of every site.

    Returns
    -------
    ValidationReport
        The verdict and everything it rests on.

    Raises
    ------
    InputError
        When signatures differ, data does not fit, a budget cannot be read, there is no such head, or the
        original can run none of the cases.
    """
    budgets, measures, tell = parse_budgets(budget), load_tasks(tasks), progress or silent
    data = _kept(data)
    first, second = as_programs(original, rewritten)
    check_heads(first, heads or {})
    third = as_program(source, first) if source is not None else None
    masks = (mask,) if isinstance(mask, str) else tuple(mask)
    comparison = Comparison.of(first, second, third, match, masks)
    _require_measured(budgets, comparison, measures)
    known = {(a.site, a.form) for a in applied_forms(first)}
    applied = applied_forms(second)
    exact = all(a.fidelity == "exact" for a in applied if (a.site, a.form) not in known)
    judged = "budget" if budgets else "noise floor" if exact else "nothing"
    session = _Session(
        comparison,
        Floors(NOISE_CASES[judged], range(seed, seed + NOISE_SEEDS[judged])),
        _Inputs(first, data, seed, _lengths(applied), sizes),
        measures,
        tell,
    )
    with open_record(resume, session.key(resume)) as record:
        findings, noise, scores = session.work(record, steady=judged == "noise floor")
        found = judge(findings, noise, judged, budgets, scores, "data" if data is not None else "random")
        record.finish()
    report = ValidationReport(
        original=first.source,
        rewritten=second.source,
        exact=exact,
        judged=judged,
        ok=found.ok,
        verdict=found.verdict,
        summary=found.summary,
        cases=found.cases,
        budget=found.budget,
        sites=applied,
        steps=found.steps,
        tasks=scores,
        notes=(*comparison.matching.notes, *session.notes, *_padding_notes(findings, masks)),
        seed=seed,
        data_sha256=session.data.hexdigest() if data is not None else None,
    )
    return illustrated(report, first, second, data, sizes or {}, tell, match, heads) if evidence else report


def _kept(data: Data | None) -> Data | None:
    """Return inputs that can be read more than once."""
    return list(data) if isinstance(data, Iterator) else data


@dataclass(frozen=True)
class _Inputs:
    """The inputs that two models are compared on."""

    program: Program
    data: Data | None
    seed: int
    lengths: Sequence[int]
    sizes: Mapping[str, Sequence[int]] | None

    def __iter__(self) -> Iterator[tuple[Case, int]]:
        """Yield cases with how many there are in all, 0 if that is not known."""
        generated = self._generated()
        recorded = data_count(self.data) if self.data is not None else 0
        total = len(generated) + recorded if recorded is not None else 0
        yield from ((case, total) for case in generated)
        if self.data is not None:
            yield from ((case, total) for case in data_cases(self.data, self.program))

    def _generated(self) -> list[Case]:
        try:
            return list(
                generated_cases(
                    self.program,
                    self.seed,
                    lambda inputs: can_run(self.program, inputs),
                    self.lengths,
                    self.sizes,
                )
            )
        except InputError:
            # shapes that are not declared are no obstacle when real inputs are given
            if self.data is None or self.sizes:
                raise
            return []


@dataclass
class _Session:
    """The work of one comparison, piece by piece, so that it can be interrupted."""

    comparison: Comparison
    floors: Floors
    inputs: _Inputs
    tasks: Mapping[str, Task]
    tell: Progress
    notes: list[str] = field(default_factory=list)
    data: Any = field(default_factory=hashlib.sha256)

    def key(self, resume: object) -> str:
        """Return what this work is: models, and what is counted of them."""
        if resume is None:
            return ""
        it = self.comparison
        programs = [it.original, it.rewritten, *([it.source[0]] if it.source is not None else [])]
        parts = [*map(fingerprint, programs), repr(it.matching), repr(it.padding.masks)]
        parts += [code_of(self.tasks.values()), repr(package_versions())]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def work(
        self, record: Record, steady: bool
    ) -> tuple[list[Finding], Mapping[int, list[Response]], tuple[TaskReport, ...]]:
        """Compare on every input, measure the noise floor, measure the tasks.

        Where ``steady``, an original that does not give the same twice is refused.
        """
        findings: list[Finding] = []
        for at, (case, total) in enumerate(self.inputs):
            self.tell("comparing", at, total)
            for part in array_bytes(case.inputs) if case.group == "data" else ():
                self.data.update(part)
            key = _digest(case) if record.kept else ""
            finding, expected = self._finding(case, key, record)
            if finding.outputs and not any(f.outputs for f in findings):
                self._repeat(case, expected, record, steady)
            findings.append(finding)
            self.floors.consider(at, finding, Kept(key, case.inputs, expected))
        _require_some(findings, self.comparison)
        noise = self.floors.measure(self.comparison, record, self.tell)
        return findings, noise, self._scores(record)

    def _finding(self, case: Case, key: str, record: Record) -> tuple[Finding, Sequence[np.ndarray] | None]:
        known = record.get(key)
        if known is None:
            finding, expected = self.comparison.find(case)
            record.put(key, finding.state())
            return finding, expected
        try:
            return Finding.restored(case.name, case.group, dict(case.sizes), known), None
        except (KeyError, TypeError, ValueError):
            raise record.damaged(case.name) from None

    def _repeat(
        self, case: Case, expected: Sequence[np.ndarray] | None, record: Record, steady: bool
    ) -> None:
        """Note a model that gives something else when it is run again on the same input."""
        found = record.get(TWICE)
        if found is None:
            expected = expected if expected is not None else self.comparison.run_original(case.inputs)
            found = list(unrepeatable(self.comparison, case.inputs, expected))
            record.put(TWICE, found)
        programs = (self.comparison.original, self.comparison.rewritten)
        for program, other in zip(programs, found, strict=True):
            if not other:
                continue
            said = (
                f"{program.source} gives other outputs when it is run again on the same inputs: something in"
                " it is random (dropout?), or it keeps state"
            )
            if steady and program is self.comparison.original:
                raise InputError(f"{said}; it has no noise floor to hold a model to, so give a budget")
            self.notes.append(said)

    def _scores(self, record: Record) -> tuple[TaskReport, ...]:
        found: list[TaskReport] = []
        for at, (name, task) in enumerate(self.tasks.items()):
            self.tell(f"task {name}", at, len(self.tasks))
            new = self._score(name, task, record)
            if twice := [t.name for t in new if t.name in [f.name for f in found]]:
                raise InputError(f"two tasks measure {', '.join(twice)}")
            found += new
        return tuple(found)

    def _score(self, name: str, task: Task, record: Record) -> tuple[TaskReport, ...]:
        known = record.get(f"task {name}")
        if known is None:
            new = measure_task(name, task, self.comparison.original, self.comparison.rewritten)
            record.put(f"task {name}", [[t.name, t.original, t.rewritten] for t in new])
            return new
        try:
            return tuple(TaskReport(str(n), float(x), float(y)) for n, x, y in known)
        except (TypeError, ValueError):
            raise record.damaged(f"task {name}") from None


def _require_measured(budgets: Sequence[Budget], comparison: Comparison, tasks: Mapping[str, Task]) -> None:
    """Refuse budgets of what will not be measured, before anything is."""
    graph = comparison.original.graph
    values = [graph.values[graph.outputs[at]] for at, _ in comparison.matching.outputs]
    dtypes = {name: value.dtype for name, value in zip(comparison.names, values, strict=True)}
    for budget in budgets:
        if budget.task is not None and not tasks:
            raise InputError(f"budget {budget}: there is no task metric {budget.task!r}; give a --task")
        if None not in dtypes.values():
            kinds: dict[bool, list[str]] = {True: [], False: []}
            for name, dtype in dtypes.items():
                kinds[is_floating(numpy_dtype(str(dtype)))].append(name)
            budget.require(kinds[True], kinds[False])


def _require_some(findings: Sequence[Finding], comparison: Comparison) -> None:
    """Refuse when nothing was compared, or a mask fits nothing."""
    if all(f.skipped for f in findings):
        reason = findings[0].error if findings else "it has no inputs"
        raise InputError(
            f"{comparison.original.source} could be run on no generated input ({reason}); give some with"
            " --data"
        )
    masks, outputs = comparison.padding.masks, [o for f in findings for o in f.outputs]
    if masks and outputs and not any(o.masked for o in outputs):
        raise InputError(
            f"mask {', '.join(masks)}: no output has its axes first; the outputs are"
            f" {', '.join(dict.fromkeys(o.name for o in outputs))}"
        )


def _padding_notes(findings: Sequence[Finding], masks: Sequence[str]) -> Iterator[str]:
    recorded = [f for f in findings if f.group == "data"]
    for name in dict.fromkeys(n for f in recorded for n in f.hidden):
        share = sum(f.hidden.get(name, 0.0) for f in recorded) / len(recorded)
        if not share:
            continue
        outputs = dict.fromkeys(o.name for f in recorded for o in f.outputs if o.masked)
        if name in masks:
            yield f"{share:.0%} of the positions, hidden by {name}, do not count in {', '.join(outputs)}"
        else:
            yield f"{share:.0%} of the positions, hidden by {name}, count; --mask {name} leaves them out"


def _lengths(applied: Sequence[AppliedForm]) -> list[int]:
    """Return lengths to try: the second is one at which every form that was applied does something."""
    from rewriter.passes import parse_form

    telling = [0]
    for site in applied:
        try:
            telling.append(trial_length(parse_form(site.form)) or 0)
        except InputError:
            # written by another version: its form is no longer known here
            continue
    return [LENGTHS[0], max(LENGTHS[1], *telling), *LENGTHS[2:]]


def _digest(case: Case) -> str:
    """Return what an input is, for a record of what was done with it."""
    digest = hashlib.sha256(repr((case.name, case.group)).encode())
    for part in array_bytes(case.inputs):
        digest.update(part)
    return digest.hexdigest()
