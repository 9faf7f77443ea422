"""``rewriter rewrite``: apply, verify, validate, and only then write."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from rewriter.cli.files import write_text
from rewriter.cli.models import open_model
from rewriter.cli.output import emit_json, progress_bar, show
from rewriter.cli.paths import check_output
from rewriter.cli.session import resumable
from rewriter.errors import InputError
from rewriter.forms import Fidelity, refusal
from rewriter.kernel_sources import check_package, write_kernels
from rewriter.report.console import validation_view, verdict_line
from rewriter.report.rewriting import rewriting_view
from rewriter.report.text import amount
from rewriter.verify.budget import Budget, parse_budgets

if TYPE_CHECKING:
    from rewriter.engine import Step
    from rewriter.plan import Plan
    from rewriter.program.program import Program
    from rewriter.record import Rewriting
    from rewriter.rules import Rule
    from rewriter.verify.validation import ValidationReport

__all__ = ["Request", "rewrite_model"]

SUFFIXES = {"onnx": ".onnx", "fx": ".pt2"}

TARGETS = {
    "onnx": (
        r"onnx(:\d+(\+preview)?)?|ort",
        "onnx, onnx:OPSET (such as onnx:23), onnx:OPSET+preview or ort",
    ),
    "fx": ("torch|triton", "torch or triton"),
}
"""What may be asked for by format, and how it is said."""


@dataclass(frozen=True)
class Request:
    """The options of one call, as they were typed."""

    model: str
    output: str
    apply: tuple[str, ...]
    plan: str | None
    data: str | None
    budget: tuple[str, ...]
    no_budget: bool
    target: str | None
    inline: bool
    seed: int
    emit_kernels: str | None = None
    resume: str | None = None


def rewrite_model(request: Request, json: bool) -> None:
    """Rewrite a model and write it, with its plan next to it, if it passes.

    Raises
    ------
    InputError
        When options contradict each other, a file cannot be read or written, or a form is approximate
        and there is neither a budget nor ``--no-budget``.
    """
    budgets = _budgets(request)
    out = check_output(request.output, [request.model])
    plan_path = check_output(f"{request.output}.plan.json", [request.model])
    kernels = _kernels(request)
    record = _record(request, (out, plan_path))
    steps, rules = _steps(request)
    with progress_bar() as progress:
        progress("loading", 0, 0)
        program = open_model(request.model)
        _check_suffix(out, program)
        _check_target(request.target, program)
        if not budgets and not request.no_budget:
            _refuse_approximations(program, steps)
        from rewriter.engine import rewrite
        from rewriter.verify.compare import validate

        with resumable(record):
            rewritten, done = rewrite(
                program,
                steps,
                rules=rules,
                target=request.target,
                inline=request.inline,
                data=request.data,
                seed=request.seed,
                progress=progress,
                resume=record,
            )
        report = None
        if done.changed:
            report = validate(program, rewritten, request.data, budgets, seed=request.seed, progress=progress)
            report = replace(report, original=request.model, rewritten=str(out))
            if report.ok:
                progress("writing", 0, 0)
                if kernels is not None:
                    write_kernels(rewritten, kernels)
                rewritten.save(out)
                write_text(plan_path, done.plan.to_json())
    _tell(request, out, plan_path, done, report, json)
    if report is None or not report.ok:
        raise typer.Exit(1)


def _record(request: Request, written: Sequence[Path]) -> Path | None:
    """Return the file that measurements are recorded in."""
    if request.resume is None:
        return None
    record = check_output(request.resume, [request.model, *([request.data] if request.data else [])])
    if record.resolve() in [path.resolve() for path in written]:
        raise InputError(f"--resume {record} is written with the model; give another file")
    return record


def _kernels(request: Request) -> Path | None:
    if request.emit_kernels is None:
        return None
    if request.target != "triton":
        raise InputError("--emit-kernels writes what the rewritten model calls; give --target triton with it")
    return check_package(request.emit_kernels)


def _budgets(request: Request) -> tuple[Budget, ...]:
    if request.budget and request.no_budget:
        raise InputError("--budget and --no-budget contradict each other; give one of them")
    return parse_budgets(request.budget)


def _steps(request: Request) -> tuple[Plan | list[Step], tuple[Rule, ...]]:
    if bool(request.apply) == (request.plan is not None):
        raise InputError("give either --apply FORM (rewriter passes lists them) or --plan PLAN.json")
    if request.plan is not None:
        from rewriter.plan import Plan

        return Plan.load(request.plan), ()
    from rewriter.passes import parse_rules
    from rewriter.selectors import parse_apply

    steps: list[Step] = []
    rules: list[Rule] = []
    for text in request.apply:
        named = parse_rules(text)
        if named is None:
            steps.append(parse_apply(text))
        else:
            rules += named
    return steps, tuple(rules)


def _check_suffix(out: Path, program: Program) -> None:
    wanted = SUFFIXES.get(program.format)
    if wanted is not None and out.suffix != wanted:
        raise InputError(f"output {out}: {program.source} is saved as {wanted}; expected a name that ends so")


def _check_target(target: str | None, program: Program) -> None:
    pattern, known = TARGETS.get(program.format, (".*", ""))
    if target is not None and not re.fullmatch(pattern, target):
        raise InputError(
            f"target {target!r}: {program.source} is {program.format}, which can be written for {known}"
        )


def _refuse_approximations(program: Program, steps: Plan | Sequence[Step]) -> None:
    from rewriter.plan import Plan

    if isinstance(steps, Plan):
        wanted = steps.assignments(program)
    else:
        wanted = [
            (site, form.at(site)) for form, selector in steps for site in selector.candidates(program.sites)
        ]
    for site, form in wanted:
        if refusal(form, site) is None and form.fidelity(site) is not Fidelity.EXACT:
            raise InputError(
                f"{form} is {form.fidelity(site).value} at {site.id}, not exact: say how far the model"
                " may move with --budget (such as 'cos>=0.99'), or accept any measured error with --no-budget"
            )


def _tell(
    request: Request, out: Path, plan: Path, done: Rewriting, report: ValidationReport | None, json: bool
) -> None:
    written = report is not None and report.ok
    if json:
        record: dict[str, Any] = {
            "model": request.model,
            "output": str(out) if written else None,
            "plan": str(plan) if written else None,
            "written": written,
            "rewriting": done.to_dict(),
            "validation": report.to_dict() if report is not None else None,
        }
        if not written:
            record["error"] = report.verdict if report is not None else "nothing was rewritten"
        emit_json(record)
        return
    show(rewriting_view(done.sites, done.fused), *done.remarks)
    if report is not None:
        show("", validation_view(report, sites=False))
    if written:
        kernels = "" if request.emit_kernels is None else f" and kernels in {request.emit_kernels}"
        show(verdict_line(True, f"written {out} ({amount(out.stat().st_size)}) and {plan}{kernels}"))
    elif report is None:
        show("", verdict_line(False, "nothing was rewritten; nothing was written"))
    else:
        show(verdict_line(False, "nothing was written"))
