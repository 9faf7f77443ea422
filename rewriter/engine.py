"""Applying forms to sites: legality, build, verification, and one commit."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, TypedDict, Unpack

import numpy as np

from rewriter.errors import InputError, RewriterError
from rewriter.forms import Cost, Fidelity, Form, refusal, trial_length
from rewriter.lower.canonical import replacement
from rewriter.lower.errors import EmitError
from rewriter.plan import Plan
from rewriter.program.program import Arrays, Build, Insertion, Program, Replacement
from rewriter.record import Applied, Rewriting
from rewriter.rules import Rule, fuse
from rewriter.selectors import Selector
from rewriter.sites.site import AttentionSite
from rewriter.verify.activations import recorded
from rewriter.verify.data import Data
from rewriter.verify.inputs import LENGTHS, generated_cases
from rewriter.verify.metrics import relative
from rewriter.verify.npz import read_npz
from rewriter.verify.probes import Probe, probes
from rewriter.verify.progress import Progress, silent
from rewriter.verify.reference import Reference
from rewriter.verify.resume import open_record
from rewriter.verify.running import RunError, first_line, run, runtime_errors
from rewriter.verify.site import SiteCheck, check_replacement, native_new

if TYPE_CHECKING:
    from rewriter.kernels.merge.form import Merge

__all__ = ["Options", "Pass", "Step", "rewrite"]

Step = tuple[Form, Selector]
"""A form and the sites it is for."""

DATA_LIMIT = 4
"""Recorded inputs that per-site errors are measured on."""

SCORES_LIMIT = 1 << 25
"""Scores that all probes of one site may evaluate in float64: larger sites get fewer probes."""


class Options(TypedDict, total=False):
    """What a pass passes on to `rewrite`."""

    data: Data | None
    seed: int
    target: str | None
    inline: bool
    verify: bool
    progress: Progress | None
    resume: str | os.PathLike[str] | None


class Pass:
    """Applies one form to the sites of a program: ``new = WindowAttention(window=256, sinks=4)(program)``.

    Parameters
    ----------
    form
        What the sites get.
    select
        Which sites; see `rewriter.selectors`.
    options
        Passed on to `rewrite`.

    Attributes
    ----------
    report
        What the last call did, or None.

    Raises
    ------
    InputError
        When the selector cannot be read.
    TypeError
        When there is no such parameter; the message says which there are.
    """

    form_type: ClassVar[type[Form]]

    def __init__(self, form: Form, select: str | Selector = "all", **options: Unpack[Options]) -> None:
        if unknown := sorted(options.keys() - Options.__annotations__.keys()):
            known = ", ".join([*form.usage(), "select", *Options.__annotations__])
            raise TypeError(f"{type(self).__name__} has no parameter {unknown[0]!r}; it has {known}")
        self.form = form
        self.selector = select if isinstance(select, Selector) else Selector.parse(str(select))
        self.options = options
        self.report: Rewriting | None = None

    def __call__(self, program: Program) -> Program:
        """Return a program in which the selected sites that the form is legal for are rewritten."""
        rewritten, self.report = rewrite(program, [(self.form, self.selector)], **self.options)
        return rewritten


def rewrite(
    program: Program,
    steps: Plan | Sequence[Step],
    *,
    rules: Sequence[Rule] = (),
    data: Data | None = None,
    seed: int = 0,
    target: str | None = None,
    inline: bool = False,
    verify: bool = True,
    progress: Progress | None = None,
    resume: str | os.PathLike[str] | None = None,
) -> tuple[Program, Rewriting]:
    """Rewrite sites of a program.

    Every site is checked for legality, built, and verified on probes in the native runtime by itself; all
    that pass are committed in one edit. A site that does not pass is left as it was.

    Parameters
    ----------
    program
        The original; it is not changed.
    steps
        A plan, or forms with selectors. Where several select a site, the last one counts.
    rules
        What is computed in fewer steps once the sites are rewritten; those of the plan come first.
    data
        Recorded inputs: per-site errors are measured on the first few, and ``best=`` ranks by them.
    seed
        Of the probes.
    target
        What is emitted: ``"torch"``, ``"onnx"``, ``"onnx:23"``…, ``"ort"``; None is the program's own.
    inline
        Write plain ONNX nodes instead of one function per form.
    verify
        False skips the probes.
    progress
        Told what is being done.
    resume
        File in which what is measured for a choice (``merge:keep``) is recorded as it comes: an interrupted
        run goes on from there. It is removed when all is done.

    Returns
    -------
    tuple
        The new program (the original itself if nothing was committed) and the record.

    Raises
    ------
    InputError
        When a selector or a plan does not fit the program, or the data does not, or a file that a form reads
        is no ``.npz`` of arrays.
    """
    lowering = _Lowering(program, target, inline)
    engine = _Engine(program, lowering, data, seed, verify, progress or silent, resume)
    wanted = steps.assignments(program) if isinstance(steps, Plan) else engine.resolve(steps)
    for path in sorted({path for _, form in wanted for path in form.files}):
        read_npz(path)
    rewritten, record = engine.commit(wanted)
    every = (*(steps.rules if isinstance(steps, Plan) else ()), *rules)
    if not every:
        return rewritten, record
    rewritten, fusion = fuse(rewritten, every, seed=seed, target=target, verify=verify)
    done = {entry.rule for entry in fusion.committed}
    plan = replace(record.plan, rules=tuple(rule for rule in every if rule.name in done))
    return rewritten, replace(record, plan=plan, fused=fusion.matches)


class _Target(TypedDict, total=False):
    target: str


class _Lowering:
    """Emits and replaces for one target."""

    def __init__(self, program: Program, target: str | None, inline: bool) -> None:
        self._program, self._inline, self.target = program, inline, target
        self._options: _Target = {} if target is None else {"target": target}

    def emit(
        self, inputs: Sequence[str], build: Build, sample: Arrays
    ) -> Callable[[Arrays], list[np.ndarray]]:
        """Return a new computation as a function of arrays."""
        return self._program.emit(inputs, build, sample, **self._options)

    def replace(self, edits: Sequence[Replacement]) -> Program:
        """Return the program with the edits made."""
        if self._inline and self._program.format == "onnx":
            from rewriter.program.onnx import OnnxProgram

            assert isinstance(self._program, OnnxProgram)
            return self._program.replace(edits, inline=True, **self._options)
        return self._program.replace(edits, **self._options)

    def insert(
        self, program: Program, insertions: Sequence[Insertion], notes: Mapping[str, Mapping[str, str]]
    ) -> Program:
        """Return a program with insertions made."""
        if self._inline and program.format == "onnx":
            from rewriter.program.onnx import OnnxProgram

            assert isinstance(program, OnnxProgram)
            return program.insert(insertions, notes, inline=True, **self._options)
        return program.insert(insertions, notes, **self._options)


class _Engine:
    """One rewrite in progress: the original, its recorded activations, and what is verified already."""

    def __init__(
        self,
        program: Program,
        lowering: _Lowering,
        data: Data | None,
        seed: int,
        verify: bool,
        progress: Progress,
        resume: str | os.PathLike[str] | None,
    ) -> None:
        self._program, self._lowering, self._data, self._resume = program, lowering, data, resume
        self._seed, self._verify, self._progress = seed, verify, progress
        self._measured_on = "data" if data is not None else "generated input"
        self._errors: dict[tuple[str, str], float | str] = {}
        self._verified: set[tuple[str, str]] = set()
        self._recorded: dict[tuple[str, str], SiteCheck] = {}

    def resolve(self, steps: Sequence[Step]) -> list[tuple[AttentionSite, Form]]:
        """Return which site gets which form."""
        chosen: dict[str, tuple[AttentionSite, Form]] = {}
        for form, selector in steps:
            sites = selector.candidates(self._program.sites)
            if selector.best is not None:
                sites = self._best(form, sites, selector)
            chosen.update((site.id, (site, own)) for site, own in self._placed(form, sites))
        return [chosen[site.id] for site in self._program.sites if site.id in chosen]

    def commit(self, wanted: Sequence[tuple[AttentionSite, Form]]) -> tuple[Program, Rewriting]:
        """Verify every assignment and make the edits that pass; what spans several sites comes last."""
        spanning = [(site, form) for site, form in wanted if form.spans]
        rewritten, record = self._commit([pair for pair in wanted if not pair[1].spans])
        if not spanning:
            return rewritten, record
        rewritten, applied, made, remark = self._span(rewritten, spanning)
        order = [site.id for site, _ in wanted]
        done = {a.site: a for a in (*record.sites, *applied)}
        forms = {step.site: step.form for step in record.plan.steps} | made
        plan = Plan.of(self._program, [(site, forms[site.id]) for site, _ in wanted if site.id in forms])
        remarks = () if remark is None else (remark,)
        return rewritten, Rewriting(plan, tuple(done[name] for name in order), remarks=remarks)

    def _span(
        self, program: Program, wanted: Sequence[tuple[AttentionSite, Form]]
    ) -> tuple[Program, list[Applied], dict[str, Form], str | None]:
        """Apply forms that change what later sites are given; the sentence is about what was chosen."""
        from rewriter.kernels.merge.form import Merge
        from rewriter.merging.span import span

        refused = {site.id: refusal(form, site) for site, form in wanted}
        legal = [(s, f) for s, f in wanted if refused[s.id] is None and isinstance(f, Merge)]
        made: dict[str, Form] = {}
        check: SiteCheck | None = None
        remark: str | None = None
        if legal:
            self._progress("merging tokens", 0, 0)
            with open_record(self._resume, self._work(program, legal)) as record:
                done = span(
                    program,
                    legal,
                    self._lowering.insert,
                    data=self._data,
                    seed=self._seed,
                    verify=self._verify,
                    progress=self._progress,
                    record=record,
                )
                record.finish()
            program, made, check, remark = done.program, dict(done.made), done.check, done.remark
            refused |= done.reasons
        applied = [
            Applied(
                site=site.id,
                form=str(made.get(site.id, form)),
                fidelity=form.fidelity(site),
                committed=site.id in made,
                reason=refused[site.id],
                check=check if site.id in made else None,
                error=None,
                measured_on=None,
                before=_as_it_is(site),
                after=form.cost(site),
            )
            for site, form in wanted
        ]
        return program, applied, made, remark

    def _work(self, program: Program, wanted: Sequence[tuple[AttentionSite, Merge]]) -> str:
        """Return what is measured for a choice: the program, and all that its rewriting depends on."""
        if self._resume is None:
            return ""
        from rewriter.verify.fingerprint import fingerprint
        from rewriter.verify.provenance import package_versions

        protected = sorted({form.protect for _, form in wanted})
        parts = [fingerprint(program), str(self._lowering.target), repr(protected), repr(package_versions())]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _commit(self, wanted: Sequence[tuple[AttentionSite, Form]]) -> tuple[Program, Rewriting]:
        legal = [(site, form) for site, form in wanted if refusal(form, site) is None]
        if self._data is not None:
            self._measure(legal)
        elif any(form.fidelity(site) is not Fidelity.EXACT for site, form in legal):
            # the error of an approximation on random probes says little about activations
            with suppress(InputError, RunError):
                self._measure(legal)
        results: list[tuple[Applied, Replacement | None]] = []
        for at, (site, form) in enumerate(wanted):
            self._progress("verifying sites", at, len(wanted))
            results.append(self._apply(site, form))
        self._progress("verifying sites", len(wanted), len(wanted))
        edits = [edit for _, edit in results if edit is not None]
        made = [pair for pair, (_, edit) in zip(wanted, results, strict=True) if edit is not None]
        rewritten = self._lowering.replace(edits) if edits else self._program
        return rewritten, Rewriting(Plan.of(self._program, made), tuple(applied for applied, _ in results))

    def _apply(self, site: AttentionSite, form: Form) -> tuple[Applied, Replacement | None]:
        fidelity, measured = form.fidelity(site), self._errors.get((site.id, str(form)))
        before, after = _as_it_is(site), form.cost(site)
        applied = Applied(site.id, str(form), fidelity, False, None, None, None, None, before, after)
        reason = measured if isinstance(measured, str) else refusal(form, site)
        if reason is not None:
            return replace(applied, reason=reason), None
        if isinstance(measured, float):
            applied = replace(applied, error=measured, measured_on=self._measured_on)
        edit = replacement(site, form.lower, {"form": str(form), "fidelity": fidelity.value})
        if self._verify:
            try:
                with _refusing(form, "the probes"):
                    check = self._check(site, form, edit)
            except _RefusedError as error:
                return replace(applied, reason=str(error)), None
            applied = replace(applied, check=check)
            if measured is None and check.probes:
                applied = replace(applied, error=check.deviation, measured_on="probes")
            if not check.ok:
                return replace(applied, reason=check.reason), None
        if applied.error is not None:
            edit = replace(edit, metadata={**edit.metadata, "error": f"{applied.error:.3g}"})
        return replace(applied, committed=True), edit

    def _check(self, site: AttentionSite, form: Form, edit: Replacement) -> SiteCheck:
        """Run all probes, or one where an equal site in the same form has passed them.

        Recorded activations that this site has passed on count as that one.
        """
        key = (site.signature, str(form))
        if key in self._verified and (site.id, str(form)) in self._recorded:
            return self._recorded[site.id, str(form)]
        lengths = [length for length in [trial_length(form)] if length is not None]
        made = probes(site, self._program, self._seed, lengths=lengths)
        chosen = made[:1] if key in self._verified else _affordable(self._program, site, made)
        check = check_replacement(self._program, site, form, edit, chosen, self._lowering.emit)
        if check.ok:
            self._verified.add(key)
        return check

    def _placed(self, form: Form, sites: Sequence[AttentionSite]) -> list[tuple[AttentionSite, Form]]:
        """Return each site with the form in which all is filled in that it leaves to the site or to data."""
        placed = [(site, form.at(site)) for site in sites]
        if self._data is None:
            return placed
        offered = {s.id: [c for c in form.choices(s) if refusal(c, s) is None] for s in sites}
        self._measure([(site, c) for site in sites for c in offered[site.id]], verify=False)
        return [(site, self._chosen(own, site, offered[site.id])) for site, own in placed]

    def _chosen(self, form: Form, site: AttentionSite, choices: Sequence[Form]) -> Form:
        """Return what the form chooses by what was measured, or the form: why none will do is kept."""
        errors = [(choice, self._errors[site.id, str(choice)]) for choice in choices]
        measured = [(choice, error) for choice, error in errors if not isinstance(error, str)]
        chosen = form.choose(site, measured) if measured else None
        if isinstance(chosen, str):
            self._errors[site.id, str(form)] = chosen
            return form
        return chosen or form

    def _best(
        self, form: Form, sites: Sequence[AttentionSite], selector: Selector
    ) -> tuple[AttentionSite, ...]:
        """Return the sites where the form is closest to the original, of those that it is legal for."""
        if not form.ranked:
            raise InputError(f"selector {selector}: {form} chooses among the sites itself; leave best= out")
        legal = [(site, own) for site, own in self._placed(form, sites) if refusal(own, site) is None]
        if not legal:
            return tuple(sites)  # to be refused, each with its reason
        self._measure(legal)
        errors = {site.id: self._errors[site.id, str(own)] for site, own in legal}
        ranked = sorted((error, site_id) for site_id, error in errors.items() if not isinstance(error, str))
        if not ranked:
            return tuple(sites)
        kept = {site_id for _, site_id in ranked[: selector.keep(len(legal))]}
        return tuple(site for site in sites if site.id in kept)

    def _measure(self, pairs: Sequence[tuple[AttentionSite, Form]], verify: bool | None = None) -> None:
        """Measure what is not measured yet, on activations: all sites on one input at a time."""
        verify = self._verify if verify is None else verify
        pending = [(site, form) for site, form in pairs if (site.id, str(form)) not in self._errors]
        if not pending:
            return
        sites = tuple({site.id: site for site, _ in pending}.values())
        squares = dict.fromkeys(((site.id, str(form)) for site, form in pending), 0.0)
        inputs = 0
        data = self._data if self._data is not None else self._generated([form for _, form in pending])
        for arrays in recorded(self._program, sites, data, DATA_LIMIT):
            inputs += 1
            for at, (site, form) in enumerate(pending):
                self._progress("measuring sites", at, len(pending))
                key = (site.id, str(form))
                try:
                    squares[key] += self._deviation(site, form, arrays, verify) ** 2
                except _RefusedError as error:
                    self._errors[key] = str(error)
            pending = [(site, form) for site, form in pending if (site.id, str(form)) not in self._errors]
        self._errors.update({k: (v / inputs) ** 0.5 for k, v in squares.items() if k not in self._errors})

    def _generated(self, forms: Sequence[Form]) -> Data:
        """Return one input for want of data, as long as the forms need to show what they do."""
        telling = sorted({length for length in map(trial_length, forms) if length is not None})

        def can_run(inputs: Arrays) -> bool:
            try:
                run(self._program, inputs)
            except RunError:
                return False
            return True

        lengths = [*reversed(telling), *LENGTHS]
        return [next(generated_cases(self._program, self._seed, can_run, lengths)).inputs]

    def _deviation(self, site: AttentionSite, form: Form, arrays: Arrays, verify: bool) -> float:
        """Return the relative error of a form at a site on recorded values; refuse it where it is wrong."""
        edit = replacement(site, form.lower, {})
        with _refusing(form, "the recorded activations"):
            if verify:
                probe = Probe("recorded activations", arrays)
                check = check_replacement(self._program, site, form, edit, [probe], self._lowering.emit)
                if check.reason is not None:
                    raise _RefusedError(check.reason)
                self._recorded[site.id, str(form)] = check
                return check.deviation
            return relative(arrays[site.output], native_new(self._lowering.emit, edit, arrays)(arrays))


class _RefusedError(Exception):
    """A form cannot be used at a site; the message is the reason."""


@contextmanager
def _refusing(form: Form, what: str) -> Iterator[None]:
    """Turn every way in which a target fails into a refusal."""
    try:
        yield
    except EmitError as error:
        raise _RefusedError(f"{form.name} cannot be written for this target: {error}") from error
    except RewriterError as error:
        raise _RefusedError(f"{form.name} could not be run on {what}: {error}") from error
    except runtime_errors() as error:
        raise _RefusedError(f"{form.name} could not be run on {what}: {first_line(error)}") from error


def _as_it_is(site: AttentionSite) -> Cost:
    from rewriter.kernels.linear.form import factored_cost
    from rewriter.kernels.softmax.form import Softmax

    return factored_cost(site) if site.formula.values_first else Softmax().cost(site)


def _affordable(program: Program, site: AttentionSite, made: Sequence[Probe]) -> list[Probe]:
    """Return the probes that the float64 evaluation can be afforded on; one at least."""
    chosen: list[Probe] = []
    spent = 0
    for probe in made:
        scores = Reference(program, site, probe.arrays).scores
        if not chosen or spent + scores <= SCORES_LIMIT:
            chosen.append(probe)
            spent += scores
    return chosen
