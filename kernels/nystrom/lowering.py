"""How Nyström attention is emitted: landmarks, three softmaxes and an iterative pseudo-inverse."""

from __future__ import annotations

import numpy as np

from rewriter.forms import Canonical
from rewriter.kernels.agent.landmarks import Landmarks
from rewriter.kernels.agent.lowering import (
    by_keys,
    emit_first_rows,
    emit_gathered,
    emit_landmarks,
    emit_shown,
)
from rewriter.lower.emitter import Emitter, Handle
from rewriter.lower.heads import for_every_head

__all__ = ["emit_nystrom", "emit_pseudo_inverse"]


def emit_nystrom(e: Emitter, a: Canonical, landmarks: Landmarks, iterations: int) -> Handle:
    """Emit Nyström attention; ``[B, H, I, E]``."""
    a = by_keys(e, a)
    shown, dtype = emit_shown(e, a), e.dtype(a.q)
    queries = emit_landmarks(e, a.q, landmarks, shown)
    keys = a.k if shown is None else for_every_head(e, a.k, a.shape["B"], a.shape["H"], a.shape["G"])
    keys = emit_landmarks(e, keys, landmarks, shown)
    keys = for_every_head(e, keys, a.shape["B"], a.shape["H"], e.shape(keys)[1])
    bias = None if shown is None else emit_landmark_bias(e, a.bias, landmarks, shown)
    scores = e.matmul(e.map("mul", queries, e.constant(a.scale, dtype)), e.permute(keys, (0, 1, 3, 2)))
    first, gathered = emit_gathered(e, a, queries, landmarks.protect)
    if bias is not None:
        scores = e.map("add", scores, bias)
    wide = "float64" if dtype == "float64" else "float32"
    middle = e.softmax(e.map("cast", scores, dtype=wide), 3)
    values = e.matmul(emit_pseudo_inverse(e, middle, iterations), e.map("cast", gathered, dtype=wide))
    result = e.attention(a.q, keys, e.map("cast", values, dtype=dtype), scale=a.scale, bias=bias)
    return emit_first_rows(e, first, result)


def emit_landmark_bias(e: Emitter, bias: Handle, landmarks: Landmarks, shown: Handle) -> Handle:
    """Emit the bias ``[B, h, 1, n]`` of the landmarks of keys that have the bias ``[B, h, 1, J]``.

    It counts from the largest of the row, so that what hides keys by a large number stays small.
    """
    dtype, top = e.dtype(bias), e.reduce("max", bias, 3)
    below = e.map("sub", bias, top)
    # a row of -inf has no number below its largest
    kept = e.map("and", shown, e.map("lt", bias, top))
    below = e.map("where", kept, below, e.constant(0.0, dtype))
    found = emit_landmarks(e, e.permute(below, (0, 1, 3, 2)), landmarks, shown)
    return e.permute(found, (0, 1, 3, 2))


def emit_pseudo_inverse(e: Emitter, a: Handle, iterations: int) -> Handle:
    """Emit the pseudo-inverse of ``[B, H, n, n]`` matrices whose rows sum to 1; see the definition."""
    dtype, size = e.dtype(a), int(e.shape(a)[3])
    columns = e.reduce("max", e.reduce("sum", a, 2), 3)
    z = e.map("div", e.permute(a, (0, 1, 3, 2)), columns)

    seven, thirteen, fifteen = (e.constant(number * np.eye(size), dtype) for number in (7, 13, 15))
    quarter = e.constant(0.25, dtype)
    for _ in range(iterations):
        az = e.matmul(a, z)
        inner = e.map("sub", fifteen, e.matmul(az, e.map("sub", seven, az)))
        z = e.map("mul", e.matmul(z, e.map("sub", thirteen, e.matmul(az, inner))), quarter)
    return z
