"""The numeric self-check: a site counts only if its formula gives what the graph gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rewriter.algebra.evaluate import EvaluationError, evaluate
from rewriter.algebra.prims import Prim, leaf
from rewriter.forms import Canonical
from rewriter.lower.band import emit_band
from rewriter.lower.canonical import emit_site
from rewriter.lower.emitter import Emitter, Handle
from rewriter.lower.errors import EmitError
from rewriter.lower.general import emit_densely
from rewriter.lower.heads import for_every_head
from rewriter.lower.prim_emitter import PrimEmitter
from rewriter.sites.oracle import complete, exact, free_inputs
from rewriter.sites.site import AttentionSite

if TYPE_CHECKING:
    from rewriter.program.program import Program

__all__ = ["check_site", "dense_attention", "formula_value"]

LARGEST = 1 << 25
"""Sites with more scores are evaluated in float32, with `COARSE` as the tolerance, to save memory."""

COARSE = 1e-4
"""Relative to the largest value, in float32."""

SIZES = (3, 5, 7, 11, 13, 17, 19, 23)
"""What dynamic dimensions are set to: odd, and no two the same."""

FACTOR = 8
"""How many units of the graph's own precision the two sides may differ by, relative to the largest value.

Both are evaluated in float64; constants that a frontend folded have been rounded to the graph's dtype.
"""


EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Distance from 1 to the next number."""


def dense_attention(e: Emitter, a: Canonical) -> Handle:
    """Emit softmax attention by its definition, step by step, the band spelled as a mask."""
    shape = a.shape
    k, v = (for_every_head(e, x, shape["B"], shape["H"], shape["G"]) for x in (a.k, a.v))
    dtype = e.dtype(a.q)
    scores = e.map("mul", e.matmul(a.q, e.permute(k, (0, 1, 3, 2))), e.constant(a.scale, dtype))
    if a.softcap is not None:
        cap = e.constant(a.softcap, dtype)
        scores = e.map("mul", e.map("tanh", e.map("div", scores, cap)), cap)
    if a.bias is not None:
        scores = e.map("add", scores, a.bias)
    if a.band is not None:
        seen = emit_band(e, a.band, e.iota(shape["I"]), e.iota(shape["J"]), dtype)
        scores = e.map("add", scores, e.reshape(seen, (1, 1, shape["I"], shape["J"])))
    if a.sink is None:
        weights = e.softmax(scores, 3)
    else:
        count = e.shape(a.sink)[3]
        sink = e.expand(a.sink, (shape["B"], shape["H"], shape["I"], count))
        weights = e.slice(e.softmax(e.concat([scores, sink], 3), 3), 3, 0, shape["J"])
    if a.empty_row == "zero":
        weights = e.map("where", e.map("isnan", weights), e.constant(0.0, dtype), weights)
    return e.matmul(weights, v)


def check_site(program: Program, site: AttentionSite, seed: int = 0) -> str | None:
    """Return None if a site's formula equals the graph on random numbers, else what differs."""
    prims = program.prims()
    sizes = _sizes(program, site)
    rng = np.random.default_rng(seed)
    try:
        free = {name: _invent(prims[name], sizes, rng) for name in free_inputs(program, site)}
        arrays = complete(program, site, free, sizes)
        scores = (site.batch * site.heads * site.queries * site.keys).substitute(sizes)
        dtype: type = np.float32 if scores.at_least(LARGEST) else np.float64
        expected = exact(program, site, arrays, dtype)
        found = formula_value(program, site, arrays, dtype)
    except (EvaluationError, EmitError, ValueError, IndexError, MemoryError) as error:
        return f"the site could not be checked: {error}"
    if found.shape != expected.shape:
        return f"the formula gives shape {found.shape}, the graph {expected.shape}"
    if not np.array_equal(np.isnan(found), np.isnan(expected)):
        return "the formula and the graph differ in which results are NaN"
    error_ = np.max(np.abs(np.nan_to_num(found) - np.nan_to_num(expected)), initial=0.0)
    scale = np.max(np.abs(np.nan_to_num(expected)), initial=1e-30)
    if error_ > (FACTOR * EPSILON.get(site.dtype, 2.0**-23) if dtype is np.float64 else COARSE) * scale:
        return f"the formula differs from the graph by {error_ / scale:.2g} of the largest value"
    return None


def formula_value(
    program: Program, site: AttentionSite, arrays: dict[str, np.ndarray], dtype: type = np.float64
) -> np.ndarray:
    """Return the site's formula, evaluated with numpy."""
    prims, e = program.prims(), PrimEmitter()
    names = site.inputs
    handles = {n: leaf("operand", prims[n].shape, prims[n].dtype, n) for n in names}
    plain = site.formula.q is not None and site.formula.scores is None and site.formula.weights is None
    whole = (
        emit_site(site, e, handles, dense_attention)
        if plain and site.normalizer == "softmax"
        else emit_densely(site, e, handles)
    )
    (result,) = evaluate([whole], {n: arrays[n] for n in names}, dtype=dtype)
    return result


def _sizes(program: Program, site: AttentionSite) -> dict[str, int]:
    prims = program.prims()
    symbols = sorted({s for n in (*site.inputs, site.output) for d in prims[n].shape for s in d.symbols})
    return {s: SIZES[k % len(SIZES)] for k, s in enumerate(symbols)}


def _invent(prim: Prim, sizes: dict[str, int], rng: np.random.Generator) -> np.ndarray:
    shape = tuple(int(n.substitute(sizes)) for n in prim.shape)
    if prim.dtype == "bool":
        return rng.random(shape) < 0.7
    if prim.dtype is not None and "int" in prim.dtype:
        return (rng.random(shape) < 0.7).astype(prim.dtype)
    return rng.standard_normal(shape)
