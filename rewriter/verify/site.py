"""Translation validation of one site: old and new computation on the same probes, native against native."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

import rewriter.sites.oracle
from rewriter.algebra.evaluate import bind, evaluate
from rewriter.algebra.prims import Prim, leaf
from rewriter.forms import Canonical, Fidelity, Form
from rewriter.lower.canonical import emit_site, inputs_of
from rewriter.lower.emitter import Emitter, Handle
from rewriter.lower.prim_emitter import PrimEmitter
from rewriter.program.program import Arrays, Build, Program, Replacement
from rewriter.sites.site import AttentionSite
from rewriter.verify.arrays import to_torch
from rewriter.verify.metrics import max_abs, pattern_mismatches, relative
from rewriter.verify.noise import SITE_FACTOR, SiteVerdict, floor, judge_site
from rewriter.verify.probes import Probe

__all__ = ["SiteCheck", "check_replacement", "definition_value", "native_new", "native_old"]

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
    old, exact_form = native_old(program, site), form.fidelity(site) is Fidelity.EXACT
    new: Run | None = None
    worst: SiteVerdict | None = None
    deviation = 0.0
    for count, probe in enumerate(probes, 1):
        # a recorded output would be taken for the truth
        arrays = {name: probe.arrays[name] for name in site.inputs}
        new = new or native_new(emit or program.emit, replacement, arrays)
        before, after = old(arrays), new(arrays)
        truth = rewriter.sites.oracle.exact(program, site, arrays)
        if exact_form:
            verdict = judge_site(truth, before, after, site.dtype)
        else:
            verdict = _judge_form(program, site, form, arrays, truth, before, after)
        deviation = max(deviation, relative(before, after)) if before.shape == after.shape else np.inf
        if worst is None or _excess(verdict) > _excess(worst):
            worst = verdict
        if not verdict.ok:
            reason = f"on probe {probe.name}: {verdict}"
            return SiteCheck(
                False, reason, count, verdict.error, verdict.original_error, verdict.tolerance, deviation
            )
    if worst is None:
        return SiteCheck(True, None, 0, 0.0, 0.0, 0.0, 0.0)
    return SiteCheck(True, None, len(probes), worst.error, worst.original_error, worst.tolerance, deviation)


def native_old(program: Program, site: AttentionSite) -> Run:
    """Return what the graph computes at a site, as a function of ``site.inputs``."""
    run = program.extract(site.inputs, [site.output])
    return lambda arrays: run({name: arrays[name] for name in site.inputs})[0]


def native_new(emit: Emit, replacement: Replacement, sample: Arrays) -> Run:
    """Return what a replacement computes, as a function of its inputs."""
    sample = {name: sample[name] for name in replacement.inputs}
    run = emit(replacement.inputs, replacement.build, sample)
    return lambda arrays: run({name: arrays[name] for name in replacement.inputs})[0]


def definition_value(
    program: Program, site: AttentionSite, form: Form, arrays: Arrays, dtype: str = "float64"
) -> np.ndarray:
    """Return what a form's definition gives at a site, in the layout of the site's output.

    Operands are read from ``arrays`` (one per entry of ``site.inputs``) and the bias is evaluated in float64,
    independently of the target's emitter; only the definition itself runs in ``dtype``.
    """
    prims, e = program.prims(), PrimEmitter()
    names = inputs_of(site)
    given = {n: arrays[n] for n in names}
    handles = {n: leaf("operand", prims[n].shape, prims[n].dtype, n) for n in names}
    outputs: dict[str, np.ndarray] = {}

    def compute(_: Emitter, a: Canonical) -> Handle:
        parts: list[Prim] = [a.q, a.k, a.v, *([a.bias] if a.bias is not None else [])]
        q, k, v, *bias = (to_torch(x.astype(dtype)) for x in evaluate(parts, given))
        band = a.band
        if band is not None:
            sizes = bind(handles.values(), given)
            band = replace(band, offset=band.offset.substitute(sizes))
        value = form.definition(q, k, v, bias[0] if bias else None, a.scale, band).numpy()
        outputs["definition"] = value
        shape = tuple(a.shape[c] for c in "BHIE")
        return leaf("definition", shape, site.dtype, "definition")

    result = emit_site(site, e, handles, compute)
    (found,) = evaluate([result], {**given, **outputs})
    return found


def _judge_form(
    program: Program,
    site: AttentionSite,
    form: Form,
    arrays: Arrays,
    truth: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
) -> SiteVerdict:
    """Hold a computation to the definition of its form.

    Its error may be that of the original against its own float64 value, or that of the definition in the
    site's precision, whichever is larger.
    """
    wanted = definition_value(program, site, form, arrays)
    if wanted.shape != after.shape:
        return SiteVerdict(False, np.inf, 0.0, 0.0, max(wanted.size, after.size))
    working = "float64" if site.dtype == "float64" else "float32"
    narrow = definition_value(program, site, form, arrays, working)
    noise = max(max_abs(truth, before), max_abs(wanted, narrow))
    tolerance = SITE_FACTOR * max(noise, floor(wanted, site.dtype))
    error, pattern = max_abs(wanted, after), pattern_mismatches(wanted, after)
    return SiteVerdict(pattern == 0 and error <= tolerance, error, noise, tolerance, pattern)


def _excess(verdict: SiteVerdict) -> float:
    return verdict.error / verdict.tolerance if verdict.tolerance else verdict.error
