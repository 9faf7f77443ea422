"""What depends on the model's inputs, and where axes come from: the data, or the weights of a projection."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from rewriter.algebra.frontends.axes import Behaviour, behaviour, is_random
from rewriter.algebra.index import Atom, Index, resolve
from rewriter.algebra.prims import (
    Concat,
    Constant,
    Einsum,
    Expand,
    Gather,
    Iota,
    Leaf,
    Map,
    Permute,
    Prim,
    Reduce,
    Reshape,
    Slice,
    runs_along,
)
from rewriter.algebra.sizes import ONE, ZERO, Size
from rewriter.program.graph import Graph
from rewriter.sites.formula import Formula
from rewriter.sites.lineage import (
    Axis,
    AxisKind,
    Part,
    Piece,
    Source,
    concatenated,
    cut,
    joined,
    kind_of,
    opaque,
    regroup,
    resized,
    size_of,
    with_kind,
)

__all__ = ["Origin", "constant_operands"]

T = TypeVar("T")

_IMAGE = 4
"""Inputs of at least this rank have places along several axes."""


class Origin:
    """What is known of where tensors and their axes come from. Everything is looked at once, when asked.

    Parameters
    ----------
    graph
        What the leaves are computed by.
    prims
        Every value of it in primitive form.
    """

    def __init__(self, graph: Graph, prims: Mapping[str, Prim]) -> None:
        self._graph = graph
        self.prims = prims
        self._inputs = frozenset(graph.inputs) - graph.constants.keys()
        self._varies: dict[Prim, bool] = {}
        self._axes: dict[Prim, tuple[Axis, ...]] = {}
        self._steps: dict[object, tuple[Axis, ...]] = {}
        self._behaviours: dict[Prim, Behaviour | None] = {}
        self._reads: dict[str, tuple[Prim, ...] | None] = {}

    def varies(self, prim: Prim) -> bool:
        """Whether a tensor may depend on the model's inputs or on anything random; sizes do not count."""
        found = self._varies.get(prim)
        return _settle(prim, self._varies, self._causes, self._varies_now) if found is None else found

    def axes(self, prim: Prim) -> tuple[Axis, ...]:
        """Return where each axis of a tensor comes from."""
        found = self._axes.get(prim)
        return _settle(prim, self._axes, self._behind, self._axes_now) if found is None else found

    def axis_kind(self, prim: Prim, index: Index, atom: Atom) -> AxisKind | None:
        """Return what an atom of an index on a tensor counts.

        Returns
        -------
        str or None
            ``token`` if projections act at each of its places: it comes from the data. ``feature`` if the
            weights of a projection made it. ``mixed`` if both. None if neither is shown.
        """
        parts = frozenset(atom.parts())
        found: list[Piece] = []
        for dim, axis in zip(resolve(index), self.axes(prim), strict=True):
            for part, stride in dim.terms:
                if part in parts:
                    found += _covered(axis, part.size, stride)
        return kind_of(tuple(found))

    # dependence on inputs

    def _causes(self, prim: Prim) -> Sequence[Prim]:
        if not isinstance(prim.form, Leaf):
            return prim.inputs
        return self._operands(prim.value) or () if prim.value is not None else ()

    def _varies_now(self, prim: Prim) -> bool:
        if isinstance(prim.form, Constant | Iota):
            return False
        if not isinstance(prim.form, Leaf):
            return any(self._varies[x] for x in prim.inputs)
        name = prim.value
        if name is not None and name in self._graph.constants:
            return False
        causes = None if name is None or name in self._inputs else self._operands(name)
        return causes is None or any(self._varies[x] for x in causes)

    def _operands(self, value: str) -> tuple[Prim, ...] | None:
        """Return what the operator that writes a value reads; None if it is random or there is none."""
        if value not in self._reads:
            self._reads[value] = self._read(value)
        return self._reads[value]

    def _read(self, value: str) -> tuple[Prim, ...] | None:
        producer = self._graph.producer(value)
        if producer is None or is_random(self._graph, value):
            return None
        found: dict[Prim, None] = {}
        names = [name for name in producer.inputs if name]
        while names:
            name = names.pop()
            if name in self.prims:
                found[self.prims[name]] = None
                continue
            inner = self._graph.producer(name)  # several results as one value: what it is computed from
            if inner is None or is_random(self._graph, name):
                return None
            names += [n for n in inner.inputs if n]
        return tuple(found)

    # axes

    def _behind(self, prim: Prim) -> Sequence[Prim]:
        if not self.varies(prim):
            return ()
        if isinstance(prim.form, Leaf):
            known = self._behaviour(prim)
            return [self.prims[n] for n in known.operands if n in self.prims] if known is not None else ()
        return [x for x in prim.inputs if self._varies[x]]  # known since it is known of the result

    def _behaviour(self, prim: Prim) -> Behaviour | None:
        if prim not in self._behaviours:
            known = behaviour(self._graph, prim.value) if prim.value is not None else None
            self._behaviours[prim] = known
        return self._behaviours[prim]

    def _axes_now(self, prim: Prim) -> tuple[Axis, ...]:
        if not self._varies[prim]:  # asked in `_behind`
            return tuple(map(opaque, prim.shape))
        found = self._of_leaf(prim) if isinstance(prim.form, Leaf) else self._of_form(prim)
        assert len(found) == len(prim.shape), prim
        return found

    def _of_leaf(self, prim: Prim) -> tuple[Axis, ...]:
        if prim.value in self._inputs:
            return _of_input(prim)
        known = self._behaviour(prim)
        operands = [self.prims.get(n) for n in known.operands] if known is not None else []
        first = operands[0] if operands else None
        unknown = tuple(map(opaque, prim.shape))
        if known is None or first is None:
            return unknown
        if known.rule == "pointwise":
            present = [x for x in operands if x is not None]
            return self._broadcast(prim, present) if all(map(self._fits, present)) else unknown
        axes, rank = self._axes[first], len(prim.shape)
        if len(axes) != rank:
            return unknown
        match known.rule:
            case "kept":
                return axes if first.shape == prim.shape else unknown
            case "projected":
                if any(x is None or self.varies(x) for x in operands[1:]):
                    return unknown
                return (*(with_kind(a, "token") for a in axes[:-1]), opaque(prim.shape[-1], "feature"))
            case "convolved":
                if not any(x is not None and len(x.shape) == rank for x in operands[1:]):
                    return unknown  # a single image, without a batch axis
                return (axes[0], opaque(prim.shape[1], "feature"), *_places(prim, axes))
            case _:
                return tuple(
                    axis if size_of(axis) == n else resized(axis, n, None)
                    for axis, n in zip(axes, prim.shape, strict=True)
                )

    def _fits(self, prim: Prim) -> bool:
        return prim in self._axes

    def _of_form(self, prim: Prim) -> tuple[Axis, ...]:
        match prim.form:
            case Map():
                return self._broadcast(prim, prim.inputs)
            case Concat(axis):
                return self._concatenated(prim, axis)
        # layers repeat: the same step on the same axes gives the same; axes are kept, so ids stay theirs
        operands = ((x.shape, id(self._axes[x]) if self._varies[x] else None) for x in prim.inputs)
        step = (prim.form, prim.shape, *operands)
        found = self._steps.get(step)
        if found is None:
            found = self._steps[step] = self._of_step(prim)
        return found

    def _of_step(self, prim: Prim) -> tuple[Axis, ...]:
        """Return the axes where they follow from the form, the shapes and the axes of the operands alone."""
        first = prim.inputs[0]
        match prim.form:
            case Permute(order):
                axes = self._known(first)
                return tuple(axes[k] for k in order)
            case Reshape():
                return regroup(self._known(first), prim.shape)
            case Expand():
                return self._broadcast(prim, prim.inputs)
            case Slice(axis, start, step):
                axes = self._known(first)
                return (*axes[:axis], cut(axes[axis], start, prim.shape[axis], step), *axes[axis + 1 :])
            case Reduce(_, dropped):
                return tuple(a for k, a in enumerate(self._known(first)) if k not in dropped)
            case Gather(axis):
                return self._gathered(prim, axis)
            case Einsum() if runs_along(prim) is not None:
                return self._known(prim.inputs[1])
            case Einsum():
                return self._contracted(prim, prim.form)
            case _:
                return self._known(first)

    def _known(self, prim: Prim) -> tuple[Axis, ...]:
        """Return the axes of an operand; of one that does not vary nothing is said."""
        found = self._axes.get(prim)
        return tuple(map(opaque, prim.shape)) if found is None else found

    def _broadcast(self, prim: Prim, operands: Sequence[Prim]) -> tuple[Axis, ...]:
        varying = [x for x in operands if self.varies(x)]
        if varying and all(x.shape == prim.shape for x in varying):
            first = self._axes[varying[0]]
            if all(self._axes[x] == first for x in varying[1:]):
                return first
        rank = len(prim.shape)
        found = []
        for k, n in enumerate(prim.shape):
            places = [(x, k - rank + len(x.shape)) for x in varying]
            held = [self._axes[x][at] for x, at in places if at >= 0 and x.shape[at] != ONE]
            found.append(joined(held) if held else opaque(n))
        result = tuple(found)
        return next((axes for x in varying if (axes := self._axes[x]) == result), result)

    def _concatenated(self, prim: Prim, axis: int) -> tuple[Axis, ...]:
        varying = [self._axes[x] for x in prim.inputs if self.varies(x)]
        found = [joined([axes[k] for axes in varying]) for k in range(len(prim.shape))]
        found[axis] = self._sequence(prim, axis)
        return tuple(found)

    def _sequence(self, prim: Prim, axis: int) -> Axis:
        turned = _turned(prim, axis)
        if turned is not None:
            whole = self._known(turned)[axis]
            single = len(whole) == 1 and whole[0].source is not None
            return whole if single else opaque(prim.shape[axis], kind_of(whole))
        held = [x for x in prim.inputs if not _is_fill(x)]
        if len(held) == 1 < len(prim.inputs):
            inner = self._known(held[0])[axis]
            if len(inner) == 1 and inner[0].source is not None:
                return resized(inner, prim.shape[axis], None)  # padding
        return concatenated(
            [
                Part(x.shape[axis], self._known(x)[axis], not self.varies(x) and not _is_fill(x))
                for x in prim.inputs
            ]
        )

    def _gathered(self, prim: Prim, axis: int) -> tuple[Axis, ...]:
        data, indices = prim.inputs
        axes, places = self._known(data), self._known(indices)
        if self.varies(data):
            kind = kind_of(axes[axis])
            taken = tuple(opaque(n, kind) for n in indices.shape)
            return (*axes[:axis], *taken, *axes[axis + 1 :])
        named = tuple(with_kind(a, "token") for a in places)
        table = [opaque(n, "feature") for n in data.shape]
        return (*table[:axis], *named, *table[axis + 1 :])

    def _contracted(self, prim: Prim, form: Einsum) -> tuple[Axis, ...]:
        held: dict[int, Axis] = {}
        fixed: set[int] = set()
        for labels, x in zip(form.operands, prim.inputs, strict=True):
            if not self.varies(x):
                fixed.update(label for label, n in zip(labels, x.shape, strict=True) if n != ONE)
                continue
            for label, n, axis in zip(labels, x.shape, self._axes[x], strict=True):
                if n != ONE:
                    held[label] = joined([held[label], axis]) if label in held else axis
        summed = [axis for label, axis in held.items() if label in fixed and label not in form.output]
        made: AxisKind | None = None
        if summed:
            made = "token" if all(kind_of(axis) == "token" for axis in summed) else "feature"
        found = []
        for label, n in zip(form.output, prim.shape, strict=True):
            if label not in held:
                found.append(opaque(n, made))
            else:
                axis = held[label]
                found.append(with_kind(axis, "token") if summed and label not in fixed else axis)
        return tuple(found)


def constant_operands(origin: Origin, formula: Formula) -> tuple[str, ...]:
    """Return which of ``q``, ``k`` and ``v`` are proved not to depend on the model's inputs."""
    operands = (("q", formula.q), ("k", formula.k), ("v", formula.v))
    return tuple(name for name, x in operands if x is not None and not origin.varies(origin.prims[x.value]))


def _settle(
    prim: Prim, known: dict[Prim, T], needs: Callable[[Prim], Iterable[Prim]], find: Callable[[Prim], T]
) -> T:
    """Return what is found of a tensor once it is found of everything that it needs."""
    stack, opened = [prim], set()
    while stack:
        at = stack[-1]
        if at in known:
            stack.pop()
            continue
        waiting = [] if at in opened else [x for x in needs(at) if x not in known]
        if waiting:
            opened.add(at)
            stack += waiting
        else:
            known[at] = find(at)
            stack.pop()
    return known[prim]


def _of_input(prim: Prim) -> tuple[Axis, ...]:
    image = len(prim.shape) >= _IMAGE
    return tuple(
        () if n == ONE else (Piece(n, None, Source(prim.value or "", k) if image and k else None),)
        for k, n in enumerate(prim.shape)
    )


def _places(prim: Prim, axes: Sequence[Axis]) -> list[Axis]:
    """Return the place axes of a convolution of a tensor that has ``axes``."""
    name, sizes = prim.value or "", prim.shape[2:]
    if len(sizes) < 2:
        return [resized(axis, n, None) for axis, n in zip(axes[2:], sizes, strict=True)]
    sources = {axis[0].source.value if axis[0].source else None for axis in axes[2:] if len(axis) == 1}
    found = []
    for k, (axis, n) in enumerate(zip(axes[2:], sizes, strict=True), 2):
        # places that come from several tensors are places of one tensor from here on
        known = opaque(size_of(axis), kind_of(axis)) if len(sources) > 1 and len(axis) == 1 else axis
        found.append(resized(known, n, Source(name, k)))
    return found


def _covered(axis: Axis, size: Size, stride: Size) -> Sequence[Piece]:
    """Return the pieces of an axis that ``size`` steps of ``stride`` go through."""
    if len(axis) < 2:
        return axis
    high = size_of(axis).divide(size * stride)
    return axis if high is None else regroup([axis], [high, size, stride])[1]


def _turned(prim: Prim, axis: int) -> Prim | None:
    """Return what a concatenation holds turned round along its axis: the end before the beginning."""
    if len(prim.inputs) != 2:
        return None
    last, first = (_behind_names(x) for x in prim.inputs)
    if not (isinstance(last.form, Slice) and isinstance(first.form, Slice)):
        return None
    whole = first.inputs[0]
    if _behind_names(last.inputs[0]) is not _behind_names(whole):
        return None
    begin, end = Slice(axis, ZERO), Slice(axis, first.shape[axis])
    whole_length = last.shape[axis] + first.shape[axis] == whole.shape[axis]
    return whole if first.form == begin and last.form == end and whole_length else None


def _behind_names(prim: Prim) -> Prim:
    while prim.form == Map("identity"):
        prim = prim.inputs[0]
    return prim


def _is_fill(prim: Prim) -> bool:
    """Whether a tensor is one number everywhere."""
    while isinstance(prim.form, Expand | Reshape) or prim.form in (Map("identity"), Map("cast")):
        prim = prim.inputs[0]
    return isinstance(prim.form, Constant) and all(n == ONE for n in prim.shape)
