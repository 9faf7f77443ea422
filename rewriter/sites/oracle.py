"""The float64 value of a site, and the numbers a probe has to invent to run it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rewriter.algebra.evaluate import evaluate
from rewriter.algebra.prims import Prim
from rewriter.algebra.term import Read, Term, leaves
from rewriter.sites.operands import native_reads
from rewriter.sites.site import AttentionSite
from rewriter.sites.values import Known

if TYPE_CHECKING:
    from rewriter.program.program import Program

__all__ = ["complete", "exact", "free_inputs"]


def free_inputs(program: Program, site: AttentionSite) -> tuple[str, ...]:
    """Return the values that decide everything else: queries, keys, values, open parts of the bias.

    A mask that is made of positions and constants is not free: `complete` computes it. One that reads
    a padding mask is computed from that, which is free.
    """
    formula, prims = site.formula, program.prims()
    names = dict.fromkeys(x.value for x in formula.operands)
    names.update(dict.fromkeys(_wholes(site)))
    known = Known()
    for leaf in _bias_leaves(site):
        if leaf.prim.value is not None and not known.closed(leaf.prim):
            names.setdefault(leaf.prim.value)
    reached = _reached(prims, site.inputs, frozenset(names))
    names.update(dict.fromkeys(reached))
    return tuple(names)


def complete(
    program: Program,
    site: AttentionSite,
    arrays: Mapping[str, np.ndarray],
    sizes: Mapping[str, int] | None = None,
) -> dict[str, np.ndarray]:
    """Return an array for each of ``site.inputs``, from arrays for `free_inputs`, in the graph's dtypes."""
    prims = program.prims()
    missing = [name for name in site.inputs if name not in arrays]
    found = evaluate([prims[name] for name in missing], arrays, sizes or {})
    full = dict(arrays)
    for name, array in zip(missing, found, strict=True):
        full[name] = array.astype(_numpy_dtype(prims[name].dtype))
    return {name: full[name] for name in site.inputs}


def exact(
    program: Program, site: AttentionSite, arrays: Mapping[str, np.ndarray], dtype: type = np.float64
) -> np.ndarray:
    """Return what the graph computes at the site in float64, from arrays for ``site.inputs``.

    Independent of how the site was recognised: the primitive form of the graph is evaluated as it is.
    """
    (result,) = evaluate([program.prims()[site.output]], arrays, dtype=dtype)
    return result


def _wholes(site: AttentionSite) -> Iterator[str]:
    """Yield the tensors that hold scores or weights which are not looked into."""
    for term in (site.formula.scores, site.formula.weights):
        if term is not None:
            yield from (r.prim.value for r in native_reads(term) if r.prim.value is not None)


def _bias_leaves(site: AttentionSite) -> Iterator[Read]:
    formula = site.formula
    terms: Sequence[Term | None] = [formula.bias, formula.sink, *(t for t, _ in formula.factors)]
    for term in terms:
        if term is not None:
            yield from (leaf for leaf in leaves(term) if isinstance(leaf, Read))


def _reached(prims: Mapping[str, Prim], targets: Sequence[str], stop: frozenset[str]) -> list[str]:
    """Return named leaves that the targets still depend on when ``stop`` is given."""
    found: dict[str, None] = {}
    seen: set[Prim] = set()
    stack = [prims[name] for name in targets if name not in stop]
    while stack:
        prim = stack.pop()
        if prim in seen or prim.value in stop:
            continue
        seen.add(prim)
        if not prim.inputs and prim.value is not None and type(prim.form).__name__ == "Leaf":
            found.setdefault(prim.value)
        stack.extend(prim.inputs)
    return list(found)


def _numpy_dtype(name: str | None) -> np.dtype[np.generic]:
    if name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        import ml_dtypes

        found: np.dtype[np.generic] = np.dtype(getattr(ml_dtypes, name))
        return found
    return np.dtype(name or "float32")
