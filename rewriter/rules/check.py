"""Translation validation of one rewritten value: old and new computation on the same probes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rewriter.algebra.evaluate import EvaluationError, evaluate
from rewriter.algebra.prims import Constant, Gather, Prim
from rewriter.program.program import Arrays, Program, Replacement
from rewriter.verify.binding import Binding, base_symbols, bound_shape, numpy_dtype
from rewriter.verify.inputs import index_bounds
from rewriter.verify.metrics import is_floating
from rewriter.verify.noise import judge_site
from rewriter.verify.site import Emit

__all__ = ["PLACES", "WHOLE", "Check", "check", "probes"]

SIZES = (3, 5, 7, 11, 13)
"""What dynamic dimensions are set to first: odd, and no two the same; then all of them to 1."""

MAGNITUDES = (1.0, 1e-3, 30.0)
"""What random numbers are multiplied by."""

WHOLE = range(-9, 10)
"""Random whole numbers that are no places."""

PLACES = range(2)
"""Random whole numbers that may be places of any axis, where its length is not known."""


@dataclass(frozen=True)
class Check:
    """What probing one replacement found.

    Parameters
    ----------
    ok
        Whether it may be committed.
    reason
        The sentence why not, or None.
    error, original_error, tolerance
        Of the worst probe, against float64; see `rewriter.verify.noise`.
    """

    ok: bool
    reason: str | None
    error: float
    original_error: float
    tolerance: float


def check(
    program: Program, edit: Replacement, emit: Emit, seed: int = 0, copies: Mapping[str, str] | None = None
) -> Check:
    """Run the old and the new computation of a value on probes, and hold both to float64.

    Parameters
    ----------
    program, edit
        The original, and what is to be committed.
    emit
        Runs the new computation, as `Program.emit` for the target of the edit.
    seed
        Of the probes.
    copies
        Values that the original computes again, and which of the edit's inputs they are.

    Raises
    ------
    rewriter.lower.errors.EmitError
        When the target cannot spell the new computation.
    """
    prims = program.prims()
    copies = copies or {}
    old = program.extract((*edit.inputs, *copies), [edit.output])
    worst: Check | None = None
    places = _looks_up(prims[edit.output], frozenset((*edit.inputs, *copies)))
    bounds = index_bounds(program, edit.inputs) if places else {}
    whole = PLACES if places else WHOLE
    for name, arrays in probes([prims[n] for n in edit.inputs], edit.inputs, seed, whole, bounds):
        new = emit(edit.inputs, edit.build, arrays)
        arrays = {**arrays, **{again: arrays[first] for again, first in copies.items()}}
        if not is_floating(numpy_dtype(prims[edit.output].dtype or "float32")):
            found = _same(name, old(arrays)[0], new(arrays)[0])
            if not found.ok:
                return found
            worst = found
            continue
        try:
            (exact,) = evaluate([prims[edit.output]], dict(arrays))
        except EvaluationError as error:
            return Check(False, f"the original cannot be evaluated in float64: {error}", np.inf, 0.0, 0.0)
        verdict = judge_site(exact, old(arrays)[0], new(arrays)[0], prims[edit.output].dtype or "float32")
        reason = None if verdict.ok else f"on probe {name}: {verdict}"
        found = Check(bool(verdict.ok), reason, verdict.error, verdict.original_error, verdict.tolerance)
        if not verdict.ok:
            return found
        if worst is None or found.error * worst.tolerance > worst.error * found.tolerance:
            worst = found
    assert worst is not None, "there are probes"
    return worst


def _same(probe: str, old: np.ndarray, new: np.ndarray) -> Check:
    """Compare what is no floating-point number: bit by bit."""
    ok = old.shape == new.shape and bool(np.array_equal(old, new))
    error = 0.0 if ok else np.inf
    return Check(ok, None if ok else f"on probe {probe}: it has other values", error, 0.0, 0.0)


def _looks_up(top: Prim, stop: frozenset[str]) -> bool:
    """Whether a value is looked up by another one, between it and its operands."""
    stack, seen = [top], {top}
    while stack:
        prim = stack.pop()
        if isinstance(prim.form, Gather):
            return True
        above = [x for x in prim.inputs if x not in seen and x.value not in stop]
        seen.update(above)
        stack += above
    return False


def probes(
    prims: Sequence[Prim],
    names: Sequence[str],
    seed: int,
    whole: range = PLACES,
    bounds: Mapping[str, int] = {},
    magnitudes: Sequence[float] = MAGNITUDES,
) -> Iterator[tuple[str, Arrays]]:
    """Yield numbers for tensors, of several sizes and magnitudes, each with what it is called.

    Parameters
    ----------
    prims, names
        The tensors.
    seed
        Of the numbers.
    whole
        What whole numbers are taken from.
    bounds
        For those that are places in tables, how many entries the smallest of the tables has.
    magnitudes
        What floating-point numbers are multiplied by.
    """
    symbols = base_symbols(n for prim in prims for n in prim.shape)
    odd = {s: SIZES[k % len(SIZES)] for k, s in enumerate(symbols)}
    bindings: list[tuple[str, Binding]] = [("odd sizes", odd)]
    if symbols:
        bindings.append(("sizes of 1", dict.fromkeys(symbols, 1)))
    spans = {name: range(bounds[name]) if name in bounds else whole for name in names}
    pairs = list(zip(names, prims, strict=True))
    for tag, binding in bindings:
        for magnitude in magnitudes:
            rng = np.random.default_rng([seed, *binding.values()])
            arrays = {n: _invented(p, binding, rng, magnitude, spans[n]) for n, p in pairs}
            yield f"{tag}, magnitude {magnitude:g}", arrays


def _invented(
    prim: Prim, binding: Binding, rng: np.random.Generator, magnitude: float, whole: range
) -> np.ndarray:
    if isinstance(prim.form, Constant):
        return np.asarray(prim.form.load())
    shape, dtype = bound_shape(prim.shape, binding), numpy_dtype(prim.dtype or "float32")
    if dtype.kind == "b":
        return rng.random(shape) < 0.7
    if not is_floating(dtype):
        least = max(0, whole.start) if dtype.kind == "u" else whole.start
        return rng.integers(least, whole.stop, shape).astype(dtype)
    return (rng.standard_normal(shape) * magnitude).astype(dtype)
