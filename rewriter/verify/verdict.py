"""From findings and the noise floor to the report: tolerances, pools, budgets, one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rewriter.verify.budget import Budget, Outcome
from rewriter.verify.distance import Distance, Tally
from rewriter.verify.finding import Finding, OutputFinding
from rewriter.verify.noise import MODEL_FACTOR, Response
from rewriter.verify.validation import CaseReport, OutputReport, Step, TaskReport

__all__ = ["LEGS", "Judgement", "judge"]

LEGS = ("source → original", "source → rewritten")

Noise = Mapping[int, Sequence[Response]]
"""For some of the findings, by position: how each output responds to last bits."""


@dataclass(frozen=True)
class Judgement:
    """The parts of a report that follow from what was found.

    Parameters
    ----------
    ok, verdict
        As `rewriter.verify.validation.ValidationReport`, and so the others.
    summary, cases, budget, steps
        See there.
    """

    ok: bool
    verdict: str
    summary: Mapping[str, tuple[OutputReport, ...]]
    cases: tuple[CaseReport, ...]
    budget: tuple[Outcome, ...]
    steps: tuple[Step, ...]


def judge(
    findings: Sequence[Finding],
    noise: Noise,
    judged: str,
    budgets: Sequence[Budget] = (),
    tasks: Sequence[TaskReport] = (),
    deciding: str = "random",
) -> Judgement:
    """Return the verdict on what was found.

    Parameters
    ----------
    findings
        One per input.
    noise
        The noise floor on some of them.
    judged
        ``"noise floor"``: every output of every input is held to it. ``"budget"``: ``budgets`` are, on the
        inputs of the group ``deciding``, pooled. ``"nothing"``.
    budgets, tasks, deciding
        What a budget is about.

    Raises
    ------
    InputError
        When a budget names an output or a task that is not there.
    """
    tolerances = _tolerances(findings, noise) if judged == "noise floor" else {}
    cases = tuple(
        _case(finding, noise.get(at), tolerances.get(at), judged == "noise floor")
        for at, finding in enumerate(findings)
    )
    pools = _pools(findings, noise)
    of_group = pools.get(deciding, {})
    changes = {f"{t.name}.change": t.rewritten - t.original for t in tasks}
    outcomes = tuple(
        b.check(
            {name: p.tally.distance() for name, p in of_group.items() if p.floating},
            {name: p.share for name, p in of_group.items() if not p.floating},
            {**{t.name: t.rewritten for t in tasks}, **changes},
        )
        for b in budgets
    )
    ok, verdict = _verdict(judged, deciding, cases, outcomes)
    summary = {group: _summary(group, outputs, cases) for group, outputs in pools.items()}
    return Judgement(ok, verdict, summary, cases, outcomes, _steps(findings))


@dataclass
class _Pool:
    """One output over many inputs."""

    floating: bool
    tally: Tally = field(default_factory=Tally)
    equal: int = 0
    total: int = 0
    noise: Tally | None = None
    legs: list[Tally] = field(default_factory=list)

    def add(self, output: OutputFinding, response: Response | None) -> None:
        self.equal, self.total = self.equal + output.equal, self.total + output.total
        if output.tally is not None:
            self.tally.merge(output.tally)
        if output.tally is not None and response is not None:
            self.noise = self.noise or Tally()
            self.noise.merge(response.tally)

    @property
    def share(self) -> float:
        return self.equal / self.total if self.total else 1.0


def _pools(findings: Sequence[Finding], noise: Noise) -> dict[str, dict[str, _Pool]]:
    pools: dict[str, dict[str, _Pool]] = {}
    for at, finding in enumerate(findings):
        responses = noise.get(at, ())
        for k, output in enumerate(finding.outputs):
            pool = pools.setdefault(finding.group, {}).setdefault(
                output.name, _Pool(output.tally is not None)
            )
            pool.add(output, responses[k] if responses else None)
    return pools


def _tolerances(findings: Sequence[Finding], noise: Noise) -> dict[int, list[float]]:
    """Return what each floating output may differ by: a multiple of the response to last bits.

    Where no response was measured, the largest one relative to the largest value of the output is taken.
    """
    count = max((len(f.outputs) for f in findings), default=0)
    rates = [
        max(
            (
                responses[k].tally.largest / peak
                for at, responses in noise.items()
                if (peak := findings[at].outputs[k].peak)
            ),
            default=0.0,
        )
        for k in range(count)
    ]
    return {
        at: [
            MODEL_FACTOR
            * max(noise[at][k].tally.largest if at in noise else rates[k] * output.peak, output.floor)
            for k, output in enumerate(finding.outputs)
        ]
        for at, finding in enumerate(findings)
    }


def _case(
    finding: Finding, noise: Sequence[Response] | None, tolerances: Sequence[float] | None, held: bool
) -> CaseReport:
    outputs = tuple(
        _output(output, noise[k] if noise else None, tolerances[k] if tolerances else None, held)
        for k, output in enumerate(finding.outputs)
    )
    ok = finding.skipped or (finding.error is None and all(o.ok for o in outputs))
    return CaseReport(finding.name, finding.group, outputs, finding.error, ok, finding.sizes)


def _output(
    output: OutputFinding, noise: Response | None, tolerance: float | None, held: bool
) -> OutputReport:
    if output.tally is None:
        # an answer that the last bits decide is none that the original gives
        unstable = noise.unstable if noise is not None else set()
        different = output.total - output.equal
        ok = not held or (different == len(output.differ) and set(output.differ) <= unstable)
        share = output.equal / output.total if output.total else 1.0
        return OutputReport(output.name, None, share, None, ok, worst=output.worst)
    found = output.tally.distance()
    ok = found.pattern == 0 and (tolerance is None or found.max_abs <= tolerance)
    floor = noise.tally.distance() if noise is not None else None
    return OutputReport(output.name, found, None, tolerance, ok, floor, output.worst)


def _summary(group: str, pools: Mapping[str, _Pool], cases: Sequence[CaseReport]) -> tuple[OutputReport, ...]:
    """Return one line per output: pooled measures, and tolerance and worst element of its worst case."""
    rows = []
    for name, pool in pools.items():
        mine = [(c, o) for c in cases if c.group == group for o in c.outputs if o.output == name]
        case, worst = max(mine, key=lambda pair: _excess(pair[1]))
        rows.append(
            OutputReport(
                output=name,
                distance=pool.tally.distance() if pool.floating else None,
                agreement=None if pool.floating else pool.share,
                tolerance=worst.tolerance,
                ok=all(o.ok for _, o in mine),
                noise=pool.noise.distance() if pool.noise is not None else None,
                worst=worst.worst,
                case=case.name,
            )
        )
    return tuple(rows)


def _excess(output: OutputReport) -> float:
    """Return how bad an output is: over its tolerance where it has one."""
    if output.distance is None:
        return 1.0 - (1.0 if output.agreement is None else output.agreement)
    if output.distance.pattern:
        return float("inf")
    return output.distance.max_abs / output.tolerance if output.tolerance else output.distance.max_abs


def _steps(findings: Sequence[Finding]) -> tuple[Step, ...]:
    legs: list[dict[str, Tally]] = [{} for _ in LEGS]
    for finding in findings:
        for output in finding.outputs:
            for tallies, leg in zip(legs, output.legs, strict=False):
                tallies.setdefault(output.name, Tally()).merge(leg)
    return tuple(
        Step(name, {n: t.distance() for n, t in tallies.items()})
        for name, tallies in zip(LEGS, legs, strict=True)
        if tallies
    )


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
    where = f"; {output.worst}" if output.worst is not None else ""
    if output.distance is None:
        return f"{1 - (output.agreement or 0.0):.2%} of the elements differ{where}"
    if output.distance.pattern:
        return f"{output.distance.pattern} elements are NaN or inf in one model only{where}"
    return f"the largest error {_over(output.distance, output.tolerance)}{where}"


def _over(found: Distance, tolerance: float | None) -> str:
    return f"{found.max_abs:.3g} is over the tolerance {tolerance or 0.0:.3g}"
