"""Parts of a program with another number of tokens: formulas of sites, and views that mention the number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rewriter.algebra.index import Affine, Atom, Index, resolve
from rewriter.algebra.prims import Expand, Permute, Prim, Reshape, Slice
from rewriter.algebra.sizes import ONE, ZERO, Size
from rewriter.lower.emitter import Emitter, Handle
from rewriter.merging.layout import resized
from rewriter.sites.carried import Mark, carried
from rewriter.sites.formula import Axes, Formula, Operand
from rewriter.sites.site import AttentionSite

__all__ = ["View", "site_with", "view_of"]

Atoms = tuple[Atom, ...]


def site_with(site: AttentionSite, tokens: Size, shape: tuple[Size, ...]) -> AttentionSite:
    """Return a site with another number of queries and keys; ``shape`` is that of its result."""
    formula, axes = site.formula, site.formula.axes
    assert formula.q is not None and formula.k is not None, "it is attention"
    queries, keys = Atom(tokens, "queries"), Atom(tokens, "keys")
    fewer = Formula(
        axes=Axes(axes.batch, axes.heads, axes.groups, (queries,), (keys,), axes.features, axes.v_features),
        q=_operand(formula.q, axes.queries, queries),
        k=_operand(formula.k, axes.keys, keys),
        v=_operand(formula.v, axes.keys, keys),
        scale=formula.scale,
        factors=formula.factors,
        bias=formula.bias,
        rest=formula.rest,
        output_index=_index(formula.output_index, axes.queries, queries),
        output_shape=shape,
        softcap=formula.softcap,
        sink=formula.sink,
    )
    return replace(site, queries=tokens, keys=tokens, formula=fewer)


def _operand(x: Operand, old: Atoms, new: Atom) -> Operand:
    return Operand(x.value, _index(x.index, old, new))


def _index(index: Index, old: Atoms, new: Atom) -> Index:
    return tuple(_dim(dim, old, new) for dim in resolve(index))


def _dim(dim: Affine, old: Atoms, new: Atom) -> Affine:
    """Return a dimension with one atom in the place of some that lie together."""
    if not any(a in old for a in dim.atoms):
        return dim
    found = dim.dense()
    assert found is not None, "tokens lie in whole axes"
    order = list(found[0])
    at = order.index(old[0])
    order[at : at + len(old)] = [new]
    total, stride = Affine(ZERO), ONE
    for atom in reversed(order):
        total, stride = total.plus(Affine.of(atom).times(stride)), stride * atom.size
    return total


class View:
    """A value that is a view of another one and mentions the number of tokens.

    Parameters
    ----------
    base
        Name of the value that it is a view of.
    steps
        From the base to the value.
    mark
        Where the tokens are in the base.
    tokens
        How many there are in the original program.
    """

    def __init__(self, base: str, steps: Sequence[Prim], mark: Mark, tokens: Size) -> None:
        self.base = base
        self._steps, self._mark, self._tokens = steps, mark, tokens

    def emit(self, e: Emitter, x: Handle, tokens: Size) -> Handle:
        """Emit the value from its base, with another number of tokens."""
        mark: Mark | None = self._mark
        for step in self._steps:
            mark = carried(step, [mark], self._tokens)
            assert mark is not None, "views carry tokens"
            shape = resized(step.shape, mark, tokens)
            match step.form:
                case Reshape():
                    x = e.reshape(x, shape)
                case Expand():
                    x = e.expand(x, shape)
                case Permute(order):
                    x = e.permute(x, order)
                case Slice(axis, start, stride):
                    x = e.slice(x, axis, start, shape[axis], stride)
        return x


def view_of(prim: Prim, marks: Mapping[str, Mark], tokens: Size) -> View | None:
    """Return the value as a view, if it is one that regroups or repeats axes."""
    steps: list[Prim] = []
    at = prim
    while isinstance(at.form, Reshape | Expand | Permute | Slice):
        steps.insert(0, at)
        at = at.inputs[0]
        if at.value is not None:
            break
    if at.value not in marks or not any(isinstance(s.form, Reshape | Expand) for s in steps):
        return None
    return View(at.value or "", steps, marks[at.value or ""], tokens)
