"""Translation validation of one site: old and new computation on the same probes, native against native."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rewriter.forms import Fidelity, Form
from rewriter.program.program import Arrays, Build, Program, Replacement
from rewriter.sites.site import AttentionSite
from rewriter.verify.metrics import max_abs, pattern_mismatches, relative
from rewriter.verify.noise import SITE_FACTOR, SiteVerdict, floor, judge_site, summation
from rewriter.verify.probes import Probe
from rewriter.verify.reference import Reference

__all__ = ["SiteCheck", "check_replacement", "judge", "native_new", "native_old"]

MULTIPLES = (1.0, 3.0, 0.7)
"""What the values are multiplied by, to see how the definition rounds; no two differ by a power of two."""

Run = Callable[[Arrays], np.ndarray]

Emit = Callable[[Sequence[str], Build, Arrays], Callable[[Arrays], list[np.ndarray]]]
"""`Program.emit`, for the target that a rewrite is for."""


@dataclass(frozen=True, slots=True)
class SiteCheck:
    """What probing one replacement found.

    Parameters
    ----------
    ok
        Whether it may be committed.
    reason
        The sentence why not, or None.
    probes
        How many probes ran.
    error, original_error, tolerance
        Of the worst probe, against float64: of the site itself if the form is exact, else of the form's
        definition. See `rewriter.verify.noise`.
    deviation
        Largest ``‖new - original‖ / ‖original‖`` of any probe.
    """

    ok: bool
    reason: str | None
    probes: int
    error: float
    original_error: float
    tolerance: float
    deviation: float


def check_replacement(
    program: Program,
    site: AttentionSite,
    form: Form,
    replacement: Replacement,
    probes: Sequence[Probe],
    emit: Emit | None = None,
) -> SiteCheck:
    """Run a site's old and new computation on probes and judge the new one.

    An exact form is held to the float64 value of the site. An approximate one is held to the float64 value
    of its own definition, which proves the lowering; how far it is from the original is measured.

    Parameters
    ----------
    program, site
        The original.
    form, replacement
        What is to be committed.
    probes
        Inputs of the site.
    emit
        Runs the new computation; ``program.emit`` by default.

    Raises
    ------
    rewriter.lower.errors.EmitError
        When the target cannot spell the form.
    """
    old, exact = native_old(program, site), form.fidelity(site) is Fidelity.EXACT
    new: Run | None = None
    worst = SiteVerdict(True, 0.0, 0.0, 0.0, 0)
    deviation = 0.0
    for count, probe in enumerate(probes, 1):
        # a recorded output would be taken for the truth
        arrays = {name: probe.arrays[name] for name in site.inputs}
        new = new or native_new(emit or program.emit, replacement, arrays)
        before, after = old(arrays), new(arrays)
        if before.shape != after.shape:
            reason = f"on probe {probe.name}: the result has shape {after.shape}, not {before.shape}"
            return SiteCheck(False, reason, count, np.inf, 0.0, 0.0, np.inf)
        verdict = judge(Reference(program, site, arrays), form, before, after, exact)
        deviation = max(deviation, relative(before, after))
        worst = max(worst, verdict, key=_excess)
        if not verdict.ok:
            return _check(f"on probe {probe.name}: {verdict}", count, verdict, deviation)
    return _check(None, len(probes), worst, deviation)


def _check(reason: str | None, probes: int, verdict: SiteVerdict, deviation: float) -> SiteCheck:
    errors = verdict.error, verdict.original_error, verdict.tolerance
    return SiteCheck(reason is None, reason, probes, *errors, deviation)


def native_old(program: Program, site: AttentionSite) -> Run:
    """Return what the graph computes at a site, as a function of ``site.inputs``."""
    run = program.extract(site.inputs, [site.output])
    return lambda arrays: run({name: arrays[name] for name in site.inputs})[0]


def native_new(emit: Emit, replacement: Replacement, sample: Arrays) -> Run:
    """Return what a replacement computes, as a function of its inputs."""
    sample = {name: sample[name] for name in replacement.inputs}
    run = emit(replacement.inputs, replacement.build, sample)
    return lambda arrays: run({name: arrays[name] for name in replacement.inputs})[0]


def judge(
    reference: Reference, form: Form, before: np.ndarray, after: np.ndarray, exact: bool
) -> SiteVerdict:
    """Hold a new computation to the site itself, or to the definition of its form.

    In the second case its error may be that of the original against its own float64 value, or that of the
    definition in the site's precision, or of a sum over the keys in another order, whichever is larger. Sums
    of equal terms round the same way at every step, by luck not at all: the definition, which is linear in
    the values, is also given multiples of them. Where that is not enough, what it gives when the last bits of
    queries and keys are moved tells how far it is determined at all: sums that nearly cancel hardly are.
    """
    dtype, truth = reference.site.dtype, reference.site_value()
    if exact:
        return judge_site(truth, reference.of(before), reference.of(after), dtype)
    wanted, found = reference.form_value(form), reference.of(after)
    precision = "float64" if dtype == "float64" else "float32"
    narrow = [reference.form_value(form, precision, times) / times for times in MULTIPLES]
    noise = max(max_abs(truth, reference.of(before)), *(max_abs(wanted, x) for x in narrow))
    terms = reference.size(reference.site.keys)
    error, pattern = max_abs(wanted, found), pattern_mismatches(wanted, found)
    least = max(floor(wanted, dtype), summation(wanted, precision, terms))
    if error > SITE_FACTOR * max(noise, least):
        noise = max(noise, max_abs(wanted, reference.form_value(form, precision, moved=True)))
    tolerance = SITE_FACTOR * max(noise, least)
    return SiteVerdict(pattern == 0 and error <= tolerance, error, noise, tolerance, pattern)


def _excess(verdict: SiteVerdict) -> float:
    return verdict.error / verdict.tolerance if verdict.tolerance else verdict.error
