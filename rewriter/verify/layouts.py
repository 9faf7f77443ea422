"""Where the numbers of a site lie in the values of its graph, found by moving their positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rewriter.algebra.dimensions import Dimensions
from rewriter.algebra.evaluate import evaluate
from rewriter.algebra.prims import Prim, leaf
from rewriter.lower.canonical import arrange_operand, restore
from rewriter.lower.emitter import Handle
from rewriter.lower.prim_emitter import PrimEmitter
from rewriter.program.program import Arrays, Program
from rewriter.sites.formula import Operand
from rewriter.sites.site import AttentionSite

__all__ = ["OperandLayout", "ResultLayout", "operand_layouts", "result_layout"]


@dataclass(frozen=True, eq=False)
class ResultLayout:
    """How the native result of a site is read as ``[batch, heads, queries, features]``.

    Parameters
    ----------
    shape
        The canonical shape.
    places
        For each number of the native result its place in the canonical one, flattened.
    """

    shape: tuple[int, int, int, int]
    places: np.ndarray

    def canonical(self, native: np.ndarray) -> np.ndarray:
        """Return a native result in the canonical shape."""
        found = np.empty(self.shape, native.dtype)
        found.ravel()[self.places.ravel()] = native.ravel()
        return found

    def native(self, canonical: np.ndarray) -> np.ndarray:
        """Return a canonical result as the graph lays it out."""
        return np.asarray(canonical.ravel()[self.places])


@dataclass(frozen=True, eq=False)
class OperandLayout:
    """Where an operand of a site is in a native value.

    Parameters
    ----------
    value
        Name of the native value.
    places
        ``[batch, heads, tokens, features]``: for each number of the operand its place in the native value,
        flattened. Axes along which the operand is the same have size 1.
    shape
        Of the native value.
    """

    value: str
    places: np.ndarray
    shape: tuple[int, ...]

    def read(self, native: np.ndarray) -> np.ndarray:
        """Return the operand."""
        return np.asarray(native.ravel()[self.places])

    def write(self, native: np.ndarray, operand: np.ndarray) -> np.ndarray:
        """Return a copy of the native value in which the operand is another."""
        changed = np.array(native, order="C")
        changed.ravel()[self.places] = operand
        return changed


def result_layout(program: Program, site: AttentionSite, arrays: Arrays) -> ResultLayout:
    """Return the layout of a site's result.

    Parameters
    ----------
    program, site
        Where.
    arrays
        One per entry of ``site.inputs``: their shapes decide the sizes.

    Raises
    ------
    rewriter.lower.errors.EmitError
        When the result does not fill whole axes.
    rewriter.algebra.dimensions.EvaluationError
        When the shapes do not decide them.
    """
    formula, axes = site.formula, site.formula.axes
    sizes = _sizes(program, site, arrays)
    names = (("batch",), ("heads", "groups"), ("queries",), ("v_features",))
    symbolic = [axes.size(*roles) for roles in names]
    batch, heads, queries, features = (sizes.require(n, site.id) for n in symbolic)
    shape = batch, heads, queries, features
    order = (*axes.batch, *axes.heads, *axes.groups, *axes.queries, *axes.v_features)
    canonical = leaf("places", tuple(symbolic), "float64", "places")
    native = restore(PrimEmitter(), canonical, formula, order)
    return ResultLayout(shape, _moved(native, {"places": _count(shape)}, sizes))


def operand_layouts(program: Program, site: AttentionSite, arrays: Arrays) -> dict[str, OperandLayout]:
    """Return the layouts of the queries, keys and values of a site, under ``q``, ``k`` and ``v``.

    One that lies in several native values is left out. Parameters and errors are those of `result_layout`.
    """
    axes = site.formula.axes
    heads = (*axes.heads, *axes.groups)
    groups = {
        "q": (axes.batch, heads, axes.queries, axes.features),
        "k": (axes.batch, axes.heads, axes.keys, axes.features),
        "v": (axes.batch, axes.heads, axes.keys, axes.v_features),
    }
    sizes = _sizes(program, site, arrays)
    operands: Mapping[str, Operand | None] = {
        "q": site.formula.q,
        "k": site.formula.k,
        "v": site.formula.v,
    }
    found = {}
    for letter, operand in operands.items():
        if operand is not None and not operand.pieces:
            name = operand.value
            held = leaf("places", program.prims()[name].shape, site.dtype, name)
            arranged = arrange_operand(PrimEmitter(), {name: held}, operand, groups[letter], site.dtype)
            shape = np.shape(arrays[name])
            places = _moved(arranged, {name: _count(shape)}, sizes)
            found[letter] = OperandLayout(name, places, shape)
    return found


def _sizes(program: Program, site: AttentionSite, arrays: Arrays) -> Dimensions:
    sizes = Dimensions()
    sizes.match([(n, program.prims()[n].shape, np.shape(arrays[n])) for n in site.inputs])
    return sizes


def _count(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(int(np.prod(shape)), dtype=np.float64).reshape(shape)


def _moved(prim: Handle, values: Arrays, sizes: Dimensions) -> np.ndarray:
    found: Prim = prim
    (places,) = evaluate([found], values, sizes.bound)
    return places.astype(np.int64)
