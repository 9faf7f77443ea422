"""A product with joined sources is a sum of products: what is the same at every place is multiplied once.

    before   [x, expand(g)] · W + b
    after    x · W₁ + (g · W₂ + b)

A vector that is tiled over a map or over tokens and joined to their channels (conditioning, global features
beside local ones) takes as many multiplications as the map itself, and is written to memory as often.
Linear layers and convolutions of one place. Refused: joined values that something else reads; weights that
something else reads, too (they would be held twice). Where every source differs everywhere, two products take
as long as one of both, and nothing is changed.

Source: Dumoulin and others: Feature-wise transformations, 2018, the section on concatenation-based
conditioning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rewriter.algebra.evaluate import evaluate
from rewriter.algebra.index import Affine, Atom, fresh
from rewriter.algebra.prims import Concat, Constant, Einsum, Map, Prim
from rewriter.algebra.sizes import Size, product
from rewriter.algebra.term import VIEWS, Read
from rewriter.lower.canonical import arrange_operand
from rewriter.lower.errors import EmitError
from rewriter.program.program import Insertion
from rewriter.rules.graph_rule import Change, Declined, GraphRule
from rewriter.rules.projections import emit_projection
from rewriter.rules.unexpanded import unexpanded, varies_along
from rewriter.sites.formula import Operand

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle
    from rewriter.program.program import Program

__all__ = ["SplitSources"]

_IDENTITY = Map("identity")


class SplitSources(GraphRule):
    """Products with joined sources as sums of products. Exact."""

    name = "split-sources"
    looks_for: ClassVar[str] = "[x, expand(g)] · W + b"

    def changes(self, program: Program) -> tuple[Sequence[Change], Sequence[Declined]]:
        """Return one change for each product with a source that is the same at every place."""
        changes: list[Change] = []
        declined: list[Declined] = []
        for name, prim in program.prims().items():
            found = _joined(prim)
            if found is None or not any(part.small for part in found.parts):
                continue
            reason = _why_not(program, found)
            if reason is None:
                changes.append(_change(program, found))
            else:
                declined.append(Declined(name, reason))
        return changes, declined


@dataclass(frozen=True)
class _Part:
    """One of the joined values.

    Parameters
    ----------
    operand
        Where it is read, and at which axes.
    groups
        The atoms of each axis.
    columns
        Its first channel and the one after its last.
    small
        Whether it is the same along an axis of the result.
    """

    operand: Operand
    groups: tuple[tuple[Atom, ...], ...]
    columns: tuple[int, int]
    small: bool


@dataclass(frozen=True)
class _Joined:
    """A product over the channels of joined values.

    Parameters
    ----------
    output, joined
        The product, with its bias, and the value that it reads.
    weight, bias
        Constants.
    turned
        Whether the weight has its outputs first.
    axis
        Of the channels: the last one, or 1 before places.
    parts
        In order.
    """

    output: Prim
    joined: Prim
    weight: Prim
    bias: Prim | None
    turned: bool
    axis: int
    parts: tuple[_Part, ...]


def _joined(prim: Prim) -> _Joined | None:
    at, bias = prim, None
    if prim.form == Map("add") and not all(x.value for x in prim.inputs):
        at, bias = sorted(prim.inputs, key=lambda x: not isinstance(x.form, Einsum))
    if prim.value is None or not isinstance(at.form, Einsum) or len(at.inputs) != 2:
        return None
    x, weight = at.inputs
    axis = _channels(at.form, len(at.shape))
    joined = x
    while joined.form == _IDENTITY:
        (joined,) = joined.inputs
    known = _is_constant(weight) and (bias is None or (at.value is None and _is_constant(bias)))
    if axis is None or not known or joined.form != Concat(axis) or x.value is None or at.dtype != prim.dtype:
        return None
    index = fresh(joined.shape)
    groups = tuple(tuple(atom for atom, _ in dim.terms) for dim in index)
    parts = _parts(joined, axis, groups)
    if parts is None or (bias is not None and product(bias.shape) != prim.shape[axis]):
        return None
    turned = at.form.operands[1][1] in at.form.operands[0]
    return _Joined(prim, x, weight, bias, turned, axis, parts)


def _channels(form: Einsum, rank: int) -> int | None:
    """Return the axis that a product with a matrix is over, or None if it is another product."""
    if len(form.operands) != 2 or len(form.operands[1]) != 2:
        return None
    labels, pair = form.operands
    shared = [label for label in pair if label in labels and label not in form.output]
    if len(shared) != 1 or len(set(labels)) < len(labels):
        return None
    axis = labels.index(shared[0])
    (new,) = (label for label in pair if label != shared[0])
    plain = form.output == (*labels[:axis], new, *labels[axis + 1 :])
    return axis if plain and axis in (1, rank - 1) else None


def _is_constant(x: Prim) -> bool:
    while isinstance(x.form, VIEWS) and len(x.inputs) == 1:
        (x,) = x.inputs
    return isinstance(x.form, Constant)


def _parts(joined: Prim, axis: int, groups: Sequence[tuple[Atom, ...]]) -> tuple[_Part, ...] | None:
    found: list[_Part] = []
    start = 0
    for x in joined.inputs:
        count = x.shape[axis].known()
        if count is None:
            return None
        index = list(fresh(x.shape))
        own = [tuple(atom for atom, _ in index[axis].terms) if k == axis else g for k, g in enumerate(groups)]
        for k, group in enumerate(groups):
            if k != axis and group:
                index[k] = Affine.of(group[0])
        at = Read(x, tuple(index))
        operand = unexpanded(at, own)
        if operand is None:
            return None
        every = {atom for k, group in enumerate(own) for atom in group if k != axis}
        small = not varies_along(at).issuperset(every)
        found.append(_Part(operand, tuple(own), (start, start + count), small))
        start += count
    return tuple(found)


def _why_not(program: Program, found: _Joined) -> str | None:
    graph, x, weight = program.graph, found.joined, found.weight
    while x.form == _IDENTITY or isinstance(x.form, Concat):
        if x.value is not None and (x.value in graph.ends or len(graph.readers(x.value)) > 1):
            return "the joined values are read elsewhere, too"
        if isinstance(x.form, Concat):
            break
        (x,) = x.inputs
    while weight.value is None and weight.inputs:
        weight = weight.inputs[0]
    if weight.value is not None and len(graph.readers(weight.value)) > 1:
        return "its weight is read elsewhere, too, and would be held twice"
    return None


def _change(program: Program, found: _Joined) -> Change:
    prims, name = program.prims(), found.output.value or ""
    names = tuple(dict.fromkeys(part.operand.value for part in found.parts))
    full = [part for part in found.parts if not part.small]
    small = [part for part in found.parts if part.small]

    def build(e: Emitter, handles: Sequence[Any]) -> Handle:
        given = dict(zip(names, handles, strict=True))
        weight, bias = _numbers(found)
        products = [_product(e, found, given, [part], weight, None) for part in small[1:]]
        products += [_product(e, found, given, full, weight, None)] if full else []
        made = _product(e, found, given, small[:1], weight, bias)
        for one in products:
            made = e.map("add", one, made)
        shape = found.output.shape
        return made if tuple(e.shape(made)) == shape else e.expand(made, shape)

    note = {"rule": SplitSources.name, "fidelity": "exact"}
    shapes = tuple(prims[value].shape for value in names)
    edit = Insertion(f"{name.rpartition('/')[2]}.split", names, shapes, build, instead=name, metadata=note)
    count = sum(last - first for first, last in (part.columns for part in small))
    return Change(name, (edit,), f"{count} channels are multiplied once, and not at every place")


def _numbers(found: _Joined) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the weight as ``[in, out]`` and the bias as ``[out]``."""
    (weight,) = evaluate([found.weight], {})
    weight = weight.T if found.turned else weight
    if found.bias is None:
        return weight, None
    (bias,) = evaluate([found.bias], {})
    return weight, np.broadcast_to(bias.reshape(-1), weight.shape[1:])


def _product(
    e: Emitter,
    found: _Joined,
    given: Mapping[str, Handle],
    parts: Sequence[_Part],
    weight: np.ndarray,
    bias: np.ndarray | None,
) -> Handle:
    """Emit the product of some of the sources with their rows of the weight."""
    dtype = found.output.dtype or "float32"
    sources = [arrange_operand(e, given, part.operand, part.groups, dtype) for part in parts]
    x = sources[0] if len(sources) == 1 else e.concat(sources, found.axis)
    rows = np.concatenate([weight[slice(*part.columns)] for part in parts])
    rank = len(found.output.shape)
    if found.axis == rank - 1:
        return emit_projection(e, x, rows, bias, dtype)
    kernel = e.constant(rows.T.reshape(rows.shape[1], rows.shape[0], *(1,) * (rank - 2)), dtype)
    added = None if bias is None else e.constant(bias, dtype)
    before = e.shape(x)
    ones, none = (1,) * (rank - 2), ((0, 0),) * (rank - 2)
    settings = {"strides": ones, "padding": none, "dilations": ones, "groups": 1}
    shape = (before[0], Size.of(rows.shape[1]), *before[2:])
    made = e.standard("convolution", x, kernel, added, shape=shape, **settings)
    if made is None:
        raise EmitError("the target has no convolution")
    return made
