"""The output projection of one head becomes part of the projection of its values.

    before   (weights · (x W_v + b_v)) · W_o + b_o
    after    weights · (x W_v W_o + b_v W_o) + b_o

Attention is linear in its values, whatever its weights are. It pays for one head that is as wide as the
model: attention of image decoders, non-local blocks, one head of latents. With several heads, each would need
values as wide as the model.
Refused: where it takes more multiplications; results, values or weights that something else reads, too.

Source: Elhage et al.: A Mathematical Framework for Transformer Circuits, 2021 (the output-value circuit).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rewriter.algebra.index import Affine, Atom, resolve
from rewriter.algebra.sizes import ONE, ZERO, Size
from rewriter.demand.places import Places
from rewriter.demand.selection import View, view_of
from rewriter.lower.canonical import emit_site, inputs_of
from rewriter.program.program import Insertion
from rewriter.rules.counts import many
from rewriter.rules.graph_rule import Change, Declined, GraphRule
from rewriter.rules.live import still_read
from rewriter.rules.packed import unpacked, why_held_twice
from rewriter.rules.projected import Projected, projected
from rewriter.rules.projections import Projection, emit_projection, known, projection_of
from rewriter.sites.carried import Mark

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle
    from rewriter.program.program import Program
    from rewriter.sites.site import AttentionSite

__all__ = ["FoldedOutputs"]

LENGTH = 64
"""What a size that is not known counts as, where multiplications are compared."""

_NOTE = {"rule": "folded-outputs", "fidelity": "exact"}


class FoldedOutputs(GraphRule):
    """Values of one head, projected once for both projections. Exact."""

    name = "folded-outputs"
    looks_for: ClassVar[str] = "attention(q, k, x · W1 + b1) · W2 + b2 of one head"

    def changes(self, program: Program) -> tuple[Sequence[Change], Sequence[Declined]]:
        """Return one change for each head whose result is projected and read nowhere else."""
        from rewriter.forms import refusal
        from rewriter.kernels.softmax.form import Softmax

        sites = {s.output: s for s in program.sites if s.heads == ONE and not refusal(Softmax(), s)}
        changes: list[Change] = []
        declined: list[Declined] = []
        folded: dict[str, _Folded] = {}  # with a bias, if there is one: that comes later
        for prim in program.prims().values() if sites else ():
            projection = projection_of(prim, whole=False)
            if projection is not None and (one := _folded(program, projection, sites)) is not None:
                folded[one.output.source] = one
        for found in folded.values():
            reason = _why_not(program, found)
            if reason is None:
                changes.append(_change(program, found))
            else:
                declined.append(Declined(found.output.output, reason))
        return changes, declined


@dataclass(frozen=True, eq=False)
class _Folded:
    """One head, its values and its output projection.

    Parameters
    ----------
    site
        The head.
    values
        Its values as a projection.
    output
        Of its result.
    views
        From the result to the projection, in order.
    """

    site: AttentionSite
    values: Projected
    output: Projection
    views: tuple[View, ...]

    @property
    def saved(self) -> int:
        """How many multiplications are saved, with a number for every size that is not known."""
        site, width, wide = self.site, self.site.v_dim, self.output.width
        rows, keys = site.batch * site.queries, site.batch * site.keys
        before = keys * self.values.width * width + rows * site.keys * width + rows * width * wide
        after = keys * self.values.width * wide + rows * site.keys * wide
        total = before - after
        return int(total.substitute(dict.fromkeys(total.symbols, LENGTH)))


def _folded(program: Program, output: Projection, sites: Mapping[str, AttentionSite]) -> _Folded | None:
    """Return what a projection is of, if it is of the result of one head whose values are a projection."""
    prims, width = program.prims(), output.weight.shape[0]
    views: list[View] = []
    name, mark = output.source, Mark(len(output.shape) - 1)
    while name not in sites:
        found = view_of(prims[name], mark, width) if width != ONE else None
        if found is None:
            return None
        views.insert(0, found)
        name, mark = found.base, found.mark
    site = sites[name]
    formula, axes = site.formula, site.formula.axes
    at = resolve(formula.output_index)[mark.axis].dense()
    if mark != Mark(mark.axis) or at is None or at[0] != axes.v_features:
        return None
    values = projected(prims, formula.v, (*axes.batch, *axes.keys), axes.heads, axes.v_features, site.dtype)
    if values is None or output.dtype != site.dtype:
        return None
    return _Folded(site, values, output, tuple(views))


def _why_not(program: Program, one: _Folded) -> str | None:
    if one.saved <= 0:
        return f"it would take {-one.saved} multiplications more"
    for projection in (one.values.projection, one.output):
        if reason := why_held_twice(program, projection, apart=True):
            return reason
    scores = {value for value, _ in one.site.consumers}
    formula, source = one.site.formula, one.values.projection.source
    others = [v for v in inputs_of(one.site) if v != formula.v.value]
    gone = {*scores, one.site.output, one.values.projection.output}
    value = still_read(program.graph, gone, {one.output.output: [source, *others]})
    if value in scores:
        return "its scores or weights are read elsewhere, too"
    return None if value is None else f"{value} is read elsewhere, too"


def _change(program: Program, one: _Folded) -> Change:
    prims, site, formula = program.prims(), one.site, one.site.formula
    source = one.values.projection.source
    wide = Atom(one.output.width, "out")
    operand = one.values.source(wide)
    v = replace(operand, value=f"{site.output}.values")
    index = tuple(Affine.of(wide) if _is_feature(site, d) else d for d in resolve(formula.output_index))
    shape = tuple(
        wide.size if _is_feature(site, d) else n
        for d, n in zip(resolve(formula.output_index), formula.output_shape, strict=True)
    )
    axes = replace(formula.axes, v_features=(wide,))
    whole = replace(
        site,
        v_dim=wide.size,
        formula=replace(formula, axes=axes, v=v, output_index=index, output_shape=shape),
    )
    names = tuple(dict.fromkeys([source, *(n for n in inputs_of(whole) if n != v.value)]))
    weight, bias, added = _merged(one)

    def attended(e: Emitter, handles: Sequence[Any]) -> Handle:
        from rewriter.kernels.softmax.form import Softmax

        given = dict(zip(names, handles, strict=True))
        given[v.value] = emit_projection(e, given[source], weight, bias, site.dtype)
        return emit_site(whole, e, given, lambda e, a: Softmax().lower(e, a))

    def laid_out(e: Emitter, handles: Sequence[Any]) -> Handle:
        x = handles[0]
        for view in one.views:
            x = view.emit(e, x, Places(site.v_dim, ZERO, wide.size))
        return x if added is None else e.map("add", x, e.constant(added, site.dtype))

    name = f"{site.output.rpartition('/')[2]}.folded"
    shapes = tuple(prims[n].shape for n in names)
    edits = (
        *unpacked(program, (one.values.projection, one.output), _NOTE),
        Insertion(name, names, shapes, attended, instead=site.output, metadata=_NOTE),
        Insertion(f"{name}.out", (name,), (shape,), laid_out, instead=one.output.output, metadata=_NOTE),
    )
    gain = f"no output projection: {many(Size.of(one.saved))} multiplications fewer"
    return Change(one.output.output, edits, gain)


def _is_feature(site: AttentionSite, dim: Affine) -> bool:
    return bool(dim.atoms & {*site.formula.axes.v_features})


def _merged(one: _Folded) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Return the weight and the bias of the values, and what is added to the result."""
    out = known(one.output.weight).astype(np.float64)
    (weight,), bias = one.values.weight(), one.values.bias()
    dtype = weight.dtype
    merged = None if bias is None else (bias[0] @ out).astype(dtype)
    added = None if one.output.bias is None else known(one.output.bias)
    return (weight @ out).astype(dtype), merged, added
