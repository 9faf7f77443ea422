"""Translation validation of edits that change shapes inside a graph: what is behind them is run, old and new."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rewriter.algebra.prims import Constant
from rewriter.errors import RewriterError
from rewriter.program.cut_out import part_inputs
from rewriter.program.program import OUTPUT, Arrays, Insertion, Program
from rewriter.rules.check import Check, probes
from rewriter.sites.origin import Origin
from rewriter.verify.binding import numpy_dtype
from rewriter.verify.metrics import is_floating, max_abs, pattern_mismatches
from rewriter.verify.noise import MODEL_FACTOR, epsilon, floor
from rewriter.verify.running import runtime_errors

__all__ = ["rerun"]


def rerun(original: Program, changed: Program, insertions: Sequence[Insertion], seed: int = 0) -> Check:
    """Run both programs from the values that edits leave as they are to the outputs behind the edits.

    Outputs may differ `MODEL_FACTOR` times as much as the original's respond to a change of those values in
    their last bit, or by the last bits of their largest value.

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
    prims = original.prims()
    inputs, outputs = _around(original, insertions)
    old, new = original.extract(inputs, outputs), changed.extract(inputs, outputs)
    worst: Check | None = None
    for name, arrays in probes([prims[n] for n in inputs], inputs, seed):
        try:
            before, moved = old(arrays), old(_moved(arrays, seed))
        except (RewriterError, *runtime_errors()):
            continue  # sizes that the original does not take
        for output, a, b, c in zip(outputs, before, new(arrays), moved, strict=True):
            found = _compared(f"on probe {name}, {output}", a, b, c)
            if not found.ok:
                return found
            if worst is None or found.error * worst.tolerance > worst.error * found.tolerance:
                worst = found
    return worst or Check(False, "the original runs on none of the probes", np.inf, 0.0, 0.0)


def _compared(what: str, a: np.ndarray, b: np.ndarray, moved: np.ndarray) -> Check:
    if a.shape != b.shape or pattern_mismatches(a, b):
        reason = f"{what} has another shape, or other places that are NaN or inf"
        return Check(False, reason, np.inf, 0.0, 0.0)
    if not is_floating(a.dtype):
        same = bool((a == b).all()) or not bool((a == moved).all())
        return Check(same, None if same else f"{what} differs", 0.0, 0.0, 0.0)
    error, response = max_abs(a, b), max_abs(a, moved)
    tolerance = MODEL_FACTOR * max(response, floor(a, a.dtype))
    reason = None if error <= tolerance else f"{what} differs by {error:.2e}, more than {tolerance:.2e}"
    return Check(reason is None, reason, error, response, tolerance)


def _moved(arrays: Arrays, seed: int) -> Arrays:
    rng = np.random.default_rng(seed + 1)
    found = {}
    for name, x in arrays.items():
        if is_floating(x.dtype):
            x = (x * (1 + rng.choice([-1.0, 1.0], x.shape) * epsilon(x.dtype))).astype(x.dtype)
        found[name] = x
    return found


def _around(program: Program, insertions: Sequence[Insertion]) -> tuple[list[str], list[str]]:
    """Return the values that edits start from, and the outputs behind them."""
    graph, prims = program.graph, program.prims()
    origin = Origin(graph, prims)
    changed: set[str] = set()
    starts: list[str] = []
    for edit in insertions:
        starts += edit.inputs
        if edit.readers is not None:
            changed |= edit.readers - {OUTPUT}
        elif edit.instead is not None:
            changed.add(edit.instead)
    reads = [*starts]
    for node in graph.nodes:
        if not changed.isdisjoint(node.outputs) or any(v in changed for v in node.inputs):
            changed.update(node.outputs)
            reads += [v for v in node.inputs if v is not None]
    found: dict[str, None] = {}
    seen: set[str] = set()
    stack = [v for v in reads if v not in changed]
    while stack:
        name = stack.pop()
        prim = prims.get(name)
        if name in seen or name in graph.constants or (prim and isinstance(prim.form, Constant)):
            continue
        seen.add(name)
        node = graph.producer(name)
        if prim is not None and not origin.varies(prim) and name not in graph.inputs:
            continue
        given = prim is not None and is_floating(numpy_dtype(prim.dtype or "float32"))
        if node is None or given:
            found[name] = None
        else:
            stack += [v for v in node.inputs if v is not None and v not in changed]
    names = part_inputs(program, [n for n in found if n in prims])
    return names, [name for name in graph.outputs if name in changed]
