"""Which streams the tokens of an attention are of: inputs, feature maps, or learned tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rewriter.algebra.index import Atom
from rewriter.algebra.prims import Concat, Constant, Leaf, Prim
from rewriter.algebra.sizes import ONE
from rewriter.algebra.term import VIEWS
from rewriter.program.graph import Graph
from rewriter.program.program import Program
from rewriter.sites.formula import Operand
from rewriter.sites.geometry import pieces_along
from rewriter.sites.lineage import Axis, Piece, Source
from rewriter.sites.origin import Origin
from rewriter.sites.site import AttentionSite

__all__ = ["Streams"]


class Streams:
    """Names the streams of the sites of a program.

    A stream is a model input, a feature map that is computed of several of them, or learned tokens.
    """

    def __init__(self, program: Program) -> None:
        self._graph = program.graph
        self._origin = _Tokens(program.graph, program.prims())
        self._inputs = frozenset(program.graph.inputs) - program.graph.constants.keys()
        self._names: dict[str, str] = {}

    def queries(self, site: AttentionSite) -> frozenset[str]:
        """Return the streams whose tokens ask; none where the graph does not show it."""
        return self._of(site.formula.q, site.formula.axes.queries)

    def keys(self, site: AttentionSite) -> frozenset[str]:
        """Return the streams whose tokens are asked; none where the graph does not show it."""
        k, axes = site.formula.k, site.formula.axes
        if k is None:
            return frozenset()
        if not k.pieces:
            return self._of(k, axes.keys)
        parts = [self._of(piece.operand, piece.keys) for piece in k.pieces]
        return frozenset().union(*parts) if all(parts) else frozenset()

    def varies(self, prim: Prim) -> bool:
        """Whether a value is computed of the model's inputs."""
        return self._origin.varies(prim)

    def learned(self, stream: str) -> bool:
        """Whether the tokens of a stream are weights of the model."""
        return stream not in self._inputs and stream in self._origin.learned

    def _of(self, operand: Operand | None, atoms: Sequence[Atom]) -> frozenset[str]:
        if operand is None:
            return frozenset()
        axis = pieces_along(self._origin, operand, [p for a in atoms for p in a.parts()])
        values = [] if axis is None else [*_values(axis)]
        if None in values:
            return frozenset()
        return frozenset(self._named(value) for value in values if value is not None)

    def _named(self, value: str) -> str:
        """Return the model input that a value is computed of, where it is one, or the value."""
        if value not in self._names:
            found = self._inputs_behind(value)
            self._names[value] = found.pop() if len(found) == 1 else value
        return self._names[value]

    def _inputs_behind(self, value: str) -> set[str]:
        return inputs_behind(self._graph, self._inputs, value)


def inputs_behind(graph: Graph, inputs: frozenset[str], value: str) -> set[str]:
    """Return the inputs that a value is computed of."""
    found: set[str] = set()
    stack, seen = [value], {value}
    while stack:
        name = stack.pop()
        if name in inputs:
            found.add(name)
        node = graph.producer(name)
        above = [] if node is None else [v for v in node.inputs if v is not None and v not in seen]
        seen.update(above)
        stack += above
    return found


def _values(axis: Axis) -> Iterator[str | None]:
    """Yield the tensors whose places an axis counts; None for what is not known."""
    for piece in axis:
        if piece.parts:
            for part in piece.parts:
                yield from _values(part.axis)
        else:
            yield piece.source.value if piece.source is not None else None


class _Tokens(Origin):
    """Knows every axis of every input and of every weight by its name, whatever it counts."""

    def __init__(self, graph: Graph, prims: Mapping[str, Prim]) -> None:
        super().__init__(graph, prims)
        self._joined: set[str] = set()

    @property
    def learned(self) -> frozenset[str]:
        """Names of constants of the model, and of what was found to be joined of them alone."""
        return frozenset(self._graph.constants) | self._joined

    def _broadcast(self, prim: Prim, operands: Sequence[Prim]) -> tuple[Axis, ...]:
        """Return the axes of a sum or product: those of two tensors that differ are of the new one."""
        found = super()._broadcast(prim, operands)
        known = [self._axes[x] for x in operands if x.shape == prim.shape and self.varies(x)]
        if prim.value is None or len(known) < 2:
            return found
        return tuple(
            own if not _is_of(axis) and all(_is_of(axes[k]) for axes in known) else axis
            for k, (axis, own) in enumerate(zip(found, _all_of(prim, prim.value), strict=True))
        )

    def _of_leaf(self, prim: Prim) -> tuple[Axis, ...]:
        return _all_of(prim, prim.value) if prim.value in self._inputs else super()._of_leaf(prim)

    def _known(self, prim: Prim) -> tuple[Axis, ...]:
        if self.varies(prim):
            return super()._known(prim)
        at = _behind_views(prim)
        if isinstance(at.form, Concat) and at.value is not None:
            self._joined.add(at.value)
        elif not isinstance(at.form, Constant | Leaf):
            return _all_of(prim, None)
        return _all_of(prim, at.value)


def _is_of(axis: Axis) -> bool:
    """Whether an axis is known to count the places of one tensor, all of them."""
    return len(axis) == 1 and axis[0].source is not None


def _all_of(prim: Prim, value: str | None) -> tuple[Axis, ...]:
    return tuple(
        () if n == ONE else (Piece(n, None, None if value is None else Source(value, k)),)
        for k, n in enumerate(prim.shape)
    )


def _behind_views(prim: Prim) -> Prim:
    while isinstance(prim.form, VIEWS) and len(prim.inputs) == 1:
        (prim,) = prim.inputs
    return prim
