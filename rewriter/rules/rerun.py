"""Translation validation of edits that change shapes: what is behind them is run, old and new."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from rewriter.algebra.prims import Constant, Map, Prim
from rewriter.algebra.term import VIEWS
from rewriter.errors import RewriterError
from rewriter.program.cut_out import part_inputs
from rewriter.program.program import OUTPUT, Arrays, Insertion, Program
from rewriter.rules.check import MAGNITUDES, WHOLE, Check, probes
from rewriter.sites.origin import Origin
from rewriter.verify.binding import numpy_dtype
from rewriter.verify.inputs import index_bounds
from rewriter.verify.metrics import is_floating, max_abs, pattern_mismatches
from rewriter.verify.noise import MODEL_FACTOR, epsilon, floor
from rewriter.verify.running import runtime_errors

__all__ = ["compared", "moved", "rerun", "rerun_whole", "worse"]


def rerun(original: Program, changed: Program, insertions: Sequence[Insertion], seed: int = 0) -> Check:
    """Run both programs from the values that edits leave as they are to the outputs behind the edits.

    Outputs may differ `MODEL_FACTOR` times as much as the original's respond to a change of those values in
    their last bit, or by the last bits of their largest value. Whole numbers and flags may differ at
    that many times as many places.

    Parameters
    ----------
    original, changed
        The programs.
    insertions
        What has been changed.
    seed
        Of the numbers.

    Returns
    -------
    Check
        Of the worst probe; its errors are against the original, and what the original's outputs respond.
    """
    inputs, outputs = _around(original, changed, insertions)
    return _between(original, changed, inputs, outputs, seed)


def rerun_whole(original: Program, changed: Program, seed: int = 0) -> Check:
    """Run both programs from their inputs to their outputs; see `rerun`."""
    unknown = [name for name in original.graph.inputs if name not in original.prims()]
    if unknown:
        return Check(False, f"the input {unknown[0]} is no tensor that is known", np.inf, 0.0, 0.0)
    return _between(original, changed, list(original.graph.inputs), list(original.graph.outputs), seed)


def _between(original: Program, changed: Program, inputs: list[str], outputs: list[str], seed: int) -> Check:
    old, new = original.extract(inputs, outputs), changed.extract(inputs, outputs)
    worst: Check | None = None
    for name, arrays, before, moved in _runs(original, old, inputs, seed):
        for output, a, b, c in zip(outputs, before, new(arrays), moved, strict=True):
            found = compared(f"on probe {name}, {output}", a, b, c)
            if not found.ok:
                return found
            worst = worse(worst, found)
    return worst or Check(False, "the original runs on none of the probes", np.inf, 0.0, 0.0)


_Run = tuple[str, Arrays, list[np.ndarray], list[np.ndarray]]


def _runs(
    original: Program, old: Callable[[Arrays], list[np.ndarray]], inputs: Sequence[str], seed: int
) -> Iterator[_Run]:
    """Yield probes that the original takes, what it gives, and what it gives if they are moved a little.

    Whole numbers are 0 and 1, then places in the tables that they are looked up in, and other numbers that
    are as large as the original takes them.
    """
    prims = [original.prims()[name] for name in inputs]
    yield from _taken(probes(prims, inputs, seed), old, seed)
    if not any(_is_whole(prim) for prim in prims):
        return
    bounds = index_bounds(original, inputs)
    for whole in (WHOLE, range(WHOLE.stop)):
        made = [*_taken(probes(prims, inputs, seed, whole, bounds, MAGNITUDES[:1]), old, seed)]
        for name, arrays, before, after in made:
            yield f"{name}, whole numbers from {whole.start}", arrays, before, after
        if made:
            return


def _taken(
    made: Iterable[tuple[str, Arrays]], old: Callable[[Arrays], list[np.ndarray]], seed: int
) -> Iterator[_Run]:
    skipped: tuple[type[BaseException], ...] = (RewriterError, *runtime_errors())
    for name, arrays in made:
        try:
            run = name, arrays, old(arrays), old(moved(arrays, seed))
        except skipped:
            continue  # sizes or numbers that the original does not take
        yield run


def _is_whole(prim: Prim) -> bool:
    dtype = numpy_dtype(prim.dtype or "float32")
    return not isinstance(prim.form, Constant) and not is_floating(dtype) and dtype.kind != "b"


def worse(a: Check | None, b: Check) -> Check:
    """Return the check whose error is larger, by its tolerance."""
    return b if a is None or b.error * a.tolerance > a.error * b.tolerance else a


def compared(what: str, a: np.ndarray, b: np.ndarray, moved: np.ndarray) -> Check:
    """Hold an array to another one; it may differ by what that moves with the last bits of what it is of."""
    if a.shape != b.shape or pattern_mismatches(a, b):
        reason = f"{what} has another shape, or other places that are NaN or inf"
        return Check(False, reason, np.inf, 0.0, 0.0)
    if not is_floating(a.dtype):
        differ, move = (int(np.count_nonzero(a != x)) for x in (b, moved))
        ok = differ <= MODEL_FACTOR * move
        return Check(ok, None if ok else f"{what} differs at {differ} of {a.size} places", 0.0, 0.0, 0.0)
    error, response = max_abs(a, b), max_abs(a, moved)
    tolerance = MODEL_FACTOR * max(response, floor(a, a.dtype))
    if error <= tolerance:
        return Check(True, None, error, response, tolerance)
    return Check(
        False, f"{what} differs by {error:.2e}, more than {tolerance:.2e}", error, response, tolerance
    )


def moved(arrays: Arrays, seed: int) -> Arrays:
    """Return arrays whose floating-point numbers differ in their last bits."""
    rng = np.random.default_rng(seed + 1)
    found = {}
    for name, x in arrays.items():
        if is_floating(x.dtype):
            x = (x * (1 + rng.choice([-1.0, 1.0], x.shape) * epsilon(x.dtype))).astype(x.dtype)
        found[name] = x
    return found


def _around(program: Program, after: Program, insertions: Sequence[Insertion]) -> tuple[list[str], list[str]]:
    """Return the values that edits start from and leave as they are, and the outputs behind them."""
    graph = program.graph
    changed = _changed(insertions)
    reads = [name for edit in insertions for name in edit.inputs]
    for node in graph.nodes:
        if not changed.isdisjoint(node.outputs) or any(v in changed for v in node.inputs):
            changed.update(node.outputs)
            reads += [v for v in node.inputs if v is not None]
    starts = _starts(program, after, [v for v in reads if v not in changed])
    return part_inputs(program, starts), [name for name in graph.ends if name in changed]


def _changed(insertions: Sequence[Insertion]) -> set[str]:
    """Return the values that edits compute or read anew."""
    found: set[str] = set()
    for edit in insertions:
        if edit.readers is not None:
            found |= edit.readers - {OUTPUT}
        elif edit.instead is not None:
            found.add(edit.instead)
    return found


def _starts(program: Program, after: Program, reads: list[str]) -> list[str]:
    """Return the floating values that both programs compute others from, and the inputs behind the rest."""
    graph, prims, kept = program.graph, program.prims(), after.graph.values
    origin = Origin(graph, prims)
    found: dict[str, None] = {}
    seen: set[str] = set()
    stack = list(reads)
    while stack:
        name = stack.pop()
        if name in seen or name in graph.constants:
            continue
        seen.add(name)
        prim, node = prims.get(name), graph.producer(name)
        if prim is not None and not origin.varies(prim):
            continue
        given = prim is not None and name in kept and not _is_moved(prim)
        if node is None or given:
            found[name] = None
        else:
            stack += [v for v in node.inputs if v is not None]
    return [name for name in found if name in prims]


def _is_moved(prim: Prim) -> bool:
    """Whether a value is no number, or another value in another place: both may be read, and must agree."""
    moved = isinstance(prim.form, VIEWS) or prim.form == Map("identity")
    return moved or not is_floating(numpy_dtype(prim.dtype or "float32"))
