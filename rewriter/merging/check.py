"""Validation of a program with merged tokens: where those that are merged are equal, nothing may change."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rewriter.errors import InputError
from rewriter.program.program import Program
from rewriter.program.tensors import to_torch
from rewriter.sites.token_flow import TokenFlow
from rewriter.verify.metrics import is_floating, max_abs, pattern_mismatches, relative
from rewriter.verify.noise import MODEL_FACTOR, epsilon, floor
from rewriter.verify.site import SiteCheck

__all__ = ["check_merged"]

KINDS = 4
"""Different tokens in the input of the probe, at most."""

TRIES = 8
"""Orders of the tokens that are tried before there are fewer kinds of them."""

OPEN_SIZE = 2
"""Batch size of the probe where it is open."""


def check_merged(
    original: Program, merged: Program, flow: TokenFlow, counts: Sequence[int], protect: int, seed: int
) -> SiteCheck:
    """Run both programs from where the flow starts, on tokens with many twins.

    Merging equal tokens, each counted as often as it is there, is exact. What is left is rounding: outputs
    may differ `MODEL_FACTOR` times as much as the original's respond to a change of the tokens in their last
    bit, or by the last bits of their largest value.

    Parameters
    ----------
    original, merged
        The programs.
    flow
        Of the tokens of the original.
    counts
        How many are merged, site by site.
    protect
        First tokens that are never merged.
    seed
        Of the tokens.

    Returns
    -------
    SiteCheck
        Of the worst output; its errors are against the original, and what the original's respond.
    """
    outputs = list(original.graph.outputs)
    x = _twins(original, flow, counts, protect, seed)
    try:
        old, new = (p.extract([flow.start], outputs) for p in (original, merged))
        before, after = old({flow.start: x}), new({flow.start: x})
        moved = old({flow.start: _moved(x, seed)})
    except InputError as error:
        return _refused(f"it cannot be run on equal tokens: {error}")
    worst = SiteCheck(True, None, 1, 0.0, 0.0, 0.0, 0.0)
    for name, a, b, c in zip(outputs, before, after, moved, strict=True):
        if a.shape != b.shape or pattern_mismatches(a, b):
            return _refused(f"on equal tokens {name} has another shape, or other places that are NaN or inf")
        if is_floating(a.dtype):
            worst = max(worst, _compared(name, a, b, c), key=lambda check: (not check.ok, check.error))
    return worst


def _compared(name: str, a: np.ndarray, b: np.ndarray, moved: np.ndarray) -> SiteCheck:
    error, response = max_abs(a, b), max_abs(a, moved)
    tolerance = MODEL_FACTOR * max(response, floor(a, a.dtype))
    ok = error <= tolerance
    reason = None if ok else f"on equal tokens {name} differs by {error:.2e}, more than {tolerance:.2e}"
    return SiteCheck(ok, reason, 1, error, response, tolerance, relative(a, b))


def _refused(reason: str) -> SiteCheck:
    return SiteCheck(False, reason, 1, np.inf, 0.0, 0.0, np.inf)


def _twins(program: Program, flow: TokenFlow, counts: Sequence[int], protect: int, seed: int) -> np.ndarray:
    """Return tokens of which, at every merging, only equal ones become one."""
    rng = np.random.default_rng(seed)
    carried, prim = flow.values[flow.start], program.prims()[flow.start]
    shape = [n.known() or OPEN_SIZE for n in prim.shape]
    axis = carried.tokens.axis
    kinds = _kinds(int(flow.tokens), counts, protect, rng)
    different = rng.standard_normal([*shape[:axis], int(kinds.max()) + 1, *shape[axis + 1 :]])
    dtype = program.graph.values[flow.start].dtype or prim.dtype or "float32"
    found: np.ndarray = np.take(different, kinds, axis).astype(dtype)
    return found


def _kinds(tokens: int, counts: Sequence[int], protect: int, rng: np.random.Generator) -> np.ndarray:
    """Return the kind of each token: as many kinds as leave an equal partner to each at every merging."""
    for many in (KINDS, *(n for n in range(KINDS, 0, -1) for _ in range(TRIES))):
        pairs = np.repeat(rng.integers(0, many, tokens), 2)[: max(tokens - protect, 0)]
        kinds = np.concatenate([np.arange(protect), pairs + protect])
        if many == 1 or _all_merge_equals(kinds, counts, protect):
            break
    return kinds


def _all_merge_equals(kinds: np.ndarray, counts: Sequence[int], protect: int) -> bool:
    from rewriter.kernels.merge.definition import match

    size: np.ndarray = np.ones(len(kinds))
    for r in counts:
        if set(kinds[protect::2]) - set(kinds[protect + 1 :: 2]):
            return False
        alike = np.eye(int(kinds.max()) + 1)[kinds]
        matching = match([to_torch(alike)[None]], r, protect, to_torch(size)[None])
        place = matching.place[0].numpy()
        left = np.empty(matching.left, kinds.dtype)
        left[place] = kinds
        kinds, size = left, np.bincount(place, size, matching.left)
    return True


def _moved(x: np.ndarray, seed: int) -> np.ndarray:
    sign = np.random.default_rng(seed + 1).choice([-1.0, 1.0], x.shape)
    moved: np.ndarray = (x * (1 + sign * epsilon(x.dtype))).astype(x.dtype)
    return moved
