"""The insertions that make a graph compute no more places than are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewriter.algebra.sizes import Size
from rewriter.demand.analysis import Attended, Cut, Narrow, Read, Reads
from rewriter.demand.places import Demand, resized, taken
from rewriter.demand.selection import View
from rewriter.lower.canonical import emit_site, inputs_of
from rewriter.lower.emitter import Emitter, Handle
from rewriter.program.program import Build, Insertion, Program

__all__ = ["insertions"]


def insertions(program: Program, found: Reads) -> list[Insertion]:
    """Return the edits, in the order of the graph.

    Parameters
    ----------
    program
        The original.
    found
        What is read of its values.
    """
    return _Writer(program, found).made


class _Writer:
    def __init__(self, program: Program, found: Reads) -> None:
        self._program, self._found = program, found
        self._prims = program.prims()
        self._now: dict[tuple[str, Demand], str] = {}
        self.made: list[Insertion] = []
        cuts: dict[str, list[Cut]] = {}
        for cut in found.cuts:
            cuts.setdefault(cut.value, []).append(cut)
        graph = program.graph
        given = [*graph.inputs, *graph.held, *graph.constants]
        order = [*given, *(v for node in graph.nodes for v in node.outputs)]
        for name in dict.fromkeys(order):
            for cut in cuts.get(name, ()):
                self._cut(cut)
            if name in found.narrow:
                self._narrow(name, found.narrow[name])
            if name in found.selections:
                self._select(name)

    def _cut(self, cut: Cut) -> None:
        """Take what is read of a value that is computed whole."""
        readers = {
            name
            for name, narrow in self._found.narrow.items()
            if isinstance(narrow.way, Read) and self._read(cut.value, narrow) == cut.demand
        }

        def build(e: Emitter, handles: Sequence[Any]) -> Handle:
            return taken(e, handles[0], cut.demand)

        shape = self._prims[cut.value].shape
        made = self._add(cut.value, {cut.value: shape}, build, frozenset(readers))
        self._now[cut.value, cut.demand] = made

    def _read(self, name: str, narrow: Narrow) -> Demand | None:
        assert isinstance(narrow.way, Read)
        mark = narrow.way.operands.get(name)
        return None if mark is None else Demand(mark, narrow.demand.places)

    def _narrow(self, name: str, narrow: Narrow) -> None:
        match narrow.way:
            case View() as view:
                self._now[name, narrow.demand] = self._viewed(name, narrow, view)
            case Attended() as attended:
                self._now[name, narrow.demand] = self._attended(name, attended)
            case _:
                self._now[name, narrow.demand] = name

    def _viewed(self, name: str, narrow: Narrow, view: View) -> str:
        places = narrow.demand.places
        given, shape = self._given(view.base, Demand(view.mark, places))

        def build(e: Emitter, handles: Sequence[Any]) -> Handle:
            return view.emit(e, handles[0], places)

        return self._add(name, {given: shape}, build)

    def _attended(self, name: str, attended: Attended) -> str:
        from rewriter.kernels.softmax.form import Softmax

        site = attended.site
        names = inputs_of(site)
        held = [(n, attended.reads.get(n)) for n in names]
        whole = {n: self._prims[n].shape for n in names}
        inputs = dict((n, whole[n]) if demand is None else self._given(n, demand) for n, demand in held)

        def build(e: Emitter, handles: Sequence[Any]) -> Handle:
            return emit_site(site, e, dict(zip(names, handles, strict=True)), Softmax().lower)

        return self._add(name, inputs, build)

    def _given(self, name: str, demand: Demand) -> tuple[str, tuple[Size, ...]]:
        """Return what holds the places of a value that are read, and its shape."""
        shape = resized(self._prims[name].shape, demand.mark, demand.places.count)
        return self._now[name, demand], shape

    def _select(self, name: str) -> None:
        selection = self._found.selections[name]
        demand = self._found.narrow[selection.base].demand
        given, shape = self._given(selection.base, demand)

        def build(e: Emitter, handles: Sequence[Any]) -> Handle:
            return selection.emit(e, handles[0], demand.places)

        self._add(name, {given: shape}, build)

    def _add(
        self,
        name: str,
        inputs: dict[str, tuple[Size, ...]],
        build: Build,
        readers: frozenset[str] | None = None,
    ) -> str:
        made = f"{name.rpartition('/')[2]}.read.{len(self.made)}"
        values, shapes = tuple(inputs), tuple(inputs.values())
        instead = None if readers is not None and not readers else name
        note = {"rule": "unread-queries", "fidelity": "exact"}
        self.made.append(Insertion(made, values, shapes, build, instead, readers, None, note))
        return made
