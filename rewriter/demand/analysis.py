"""What is read of every value of a graph, from its outputs backwards.

Where all readers of a value read the same few places of one axis, the value need not be computed at the
others. This goes on through every operator that computes each place from the same place of its operands, and
through attention: fewer queries, and the same keys. It stops at a value that something else reads whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rewriter.algebra.frontends.mixing import mixing
from rewriter.algebra.prims import Constant, Einsum, Iota, Leaf, Prim
from rewriter.algebra.sizes import ONE, ZERO, Size, product
from rewriter.demand.fewer_queries import with_queries
from rewriter.demand.places import Demand, hull, resized
from rewriter.demand.pulled import aligned, pulled
from rewriter.demand.selection import Selection, View, selection_of, view_of
from rewriter.lower.canonical import inputs_of
from rewriter.program.graph import Graph, Node
from rewriter.sites.carried import Mark
from rewriter.sites.operands import native_reads
from rewriter.sites.site import AttentionSite
from rewriter.sites.token_flow import place_of

__all__ = ["Attended", "Cut", "Narrow", "Read", "Reads", "reads"]


@dataclass(frozen=True)
class Attended:
    """A site that is asked for some of its queries.

    Parameters
    ----------
    site
        With the queries that are left.
    reads
        Of the values that it reads, what it reads of those that it does not read whole.
    """

    site: AttentionSite
    reads: Mapping[str, Demand]


@dataclass(frozen=True)
class Read:
    """An operator that computes each place from the same place of its operands.

    Parameters
    ----------
    operands
        Where the axis is in each operand that has it.
    """

    operands: Mapping[str, Mark]


@dataclass(frozen=True)
class Narrow:
    """A value that is computed at some places only.

    Parameters
    ----------
    demand
        Which.
    way
        How: by its operator, as a view, or as the result of a site.
    """

    demand: Demand
    way: Read | View | Attended


@dataclass(frozen=True)
class Cut:
    """A value that is computed whole and read in part.

    Parameters
    ----------
    value
        Its name.
    demand
        What is read.
    """

    value: str
    demand: Demand


@dataclass(frozen=True, eq=False)
class Reads:
    """What is read of the values of a graph.

    Parameters
    ----------
    narrow
        Values that are computed in part, by name.
    cuts
        Values that are computed whole and read in part by those.
    selections
        Values that select places of a value in ``narrow``.
    whole
        Values that select places of another one, all of which something else reads or has to be computed;
        with the reason.
    saved
        Multiplications that are left out, for values in ``narrow``.
    """

    narrow: Mapping[str, Narrow]
    cuts: tuple[Cut, ...]
    selections: Mapping[str, Selection]
    whole: Mapping[str, str]
    saved: Size


def reads(graph: Graph, prims: Mapping[str, Prim], sites: Sequence[AttentionSite]) -> Reads:
    """Return what is read of the values of a program.

    Parameters
    ----------
    graph, prims
        The program.
    sites
        Those that may be asked for some of their queries.
    """
    forced: set[str] = set()
    while True:
        found = _Analysis(graph, prims, sites, frozenset(forced))
        wrong = found.wrong()
        if not wrong:
            return found.reads()
        forced |= wrong


@dataclass(eq=False)
class _Asked:
    """What readers ask of a value."""

    whole: str | None = None
    parts: list[Demand] = field(default_factory=list)
    selected: list[Demand] = field(default_factory=list)

    def together(self) -> Demand | None:
        """Return what all of them ask, if it is one thing."""
        if self.whole is not None or not (self.parts or self.selected):
            return None
        if self.parts:
            return self.parts[0] if len({*self.parts, *self.selected}) == 1 else None
        return hull(self.selected)


class _Analysis:
    def __init__(
        self,
        graph: Graph,
        prims: Mapping[str, Prim],
        sites: Sequence[AttentionSite],
        forced: frozenset[str],
    ) -> None:
        self._graph, self._prims, self._forced = graph, prims, forced
        self._sites = {site.output: site for site in sites if not site.consumers}
        self._live = _live(graph)
        found = ((name, selection_of(prim)) for name, prim in prims.items())
        self._selections = {name: s for name, s in found if s is not None}
        self._asks: dict[str, list[Demand | None]] = {}
        self._gone: set[str] = set()
        self._narrow: dict[str, Narrow] = {}
        self._cuts: list[Cut] = []
        self._whole: dict[str, str] = {}
        for node in reversed(graph.nodes):
            if node.name in self._live:
                for name in node.outputs:
                    if name in prims:
                        self._decide(name)
        for name in (*graph.inputs, *graph.held, *graph.constants):
            self._decide(name)

    def reads(self) -> Reads:
        """Return the result."""
        selections = {n: s for n, s in self._selections.items() if self._selects(n)}
        saved = sum((self._saved(name) for name in self._narrow), ZERO)
        return Reads(self._narrow, tuple(self._cuts), selections, self._whole, saved)

    def wrong(self) -> set[str]:
        """Return values that cannot be narrow after all: what is left of the graph needs them whole."""
        live = _live(self._graph, self._read_by)
        found = set()
        for name in self._narrow:
            for node in self._graph.readers(name):
                if node.name in live and not all(self._understood(name, v) for v in self._values(node)):
                    found.add(name)
        return found

    def _read_by(self, name: str) -> Sequence[str] | None:
        """Return what a narrow value is computed from, or None for what its node reads."""
        if self._selects(name):
            return [self._selections[name].base]
        match self._narrow.get(name):
            case Narrow(_, View(base)):
                return [base]
            case Narrow(_, Attended(site)):
                return inputs_of(site)
        return None

    def _selects(self, name: str) -> bool:
        """Whether a value takes places of one that is computed in part."""
        found = self._selections.get(name)
        return found is not None and name not in self._narrow and found.base in self._narrow

    def _understood(self, name: str, reader: str) -> bool:
        selection = self._selections.get(reader)
        return self._part(name, reader) is not None or (selection is not None and selection.base == name)

    def _decide(self, name: str) -> None:
        """Find what is asked of a value, and whether it can be computed in part."""
        asked = self._asked(name)
        demand = asked.together()
        way = None if demand is None or name in self._forced else self._way(name, demand)
        if demand is not None and way is not None:
            self._narrow[name] = Narrow(demand, way)
            return
        self._cuts += [Cut(name, part) for part in dict.fromkeys(asked.parts)]
        computed = self._graph.producer(name) is not None and not self._whole_number(name)
        if computed and asked.selected and hull(asked.selected) is not None:
            self._whole[name] = asked.whole or "it cannot be computed in part"

    def _asked(self, name: str) -> _Asked:
        asked = _Asked("it is an output" if name in self._graph.ends else None)
        for demand in self._asks.get(name, ()):
            if demand is None:
                asked.whole = "attention reads all of it"
            else:
                asked.parts.append(demand)
        for reader in self._readers(name):
            selection = self._selections.get(reader)
            if (part := self._part(name, reader)) is not None:
                asked.parts.append(part)
            elif selection is not None and selection.base == name:
                asked.selected.append(selection.demand)
            elif not self._counts(name, reader):
                asked.whole = f"{reader} reads all of it"
        return asked

    def _part(self, name: str, reader: str) -> Demand | None:
        """Return what a narrow value reads of another one."""
        found = self._narrow.get(reader)
        match found:
            case Narrow(demand, View(base, mark)) if base == name:
                return Demand(mark, demand.places)
            case Narrow(demand, Read(operands)) if name in operands:
                return Demand(operands[name], demand.places)
        return None

    def _counts(self, name: str, reader: str) -> bool:
        """Whether a reader may only count the entries of a value: then views can do without it."""
        if reader in self._narrow:
            return not isinstance(self._narrow[reader].way, Read)  # a view needs its base, a site was asked
        return self._whole_number(reader) and not self._whole_number(name)

    def _whole_number(self, name: str) -> bool:
        value = self._graph.values.get(name)
        return value is None or value.dtype is None or value.dtype.startswith("int")

    def _readers(self, name: str) -> Iterator[str]:
        """Yield the live values that read a value, those that it reaches in a list of tensors included."""
        for node in self._graph.readers(name):
            if node.name in self._live and node.name not in self._gone:
                yield from self._values(node)

    def _values(self, node: Node) -> Iterator[str]:
        for out in node.outputs:
            if out in self._prims or not self._graph.readers(out):
                yield out
            else:
                for reader in self._graph.readers(out):
                    if reader.name in self._live:
                        yield from self._values(reader)

    def _way(self, name: str, demand: Demand) -> Read | View | Attended | None:
        """Return how a value can be computed in part."""
        node = self._graph.producer(name)
        if node is None:
            return None
        if name in self._sites:
            return self._attended(self._sites[name], demand)
        prim = self._prims[name]
        listed = any(v and v not in self._prims and self._graph.producer(v) for v in node.inputs)
        view = view_of(prim, demand.mark, demand.places.n)
        if view is not None and (view.resizes or listed):
            return view
        if name in self._selections or listed or len(node.outputs) != 1:
            return None
        operands = self._operands(prim, demand)
        return Read(operands) if operands else None

    def _attended(self, site: AttentionSite, demand: Demand) -> Attended | None:
        formula = site.formula
        queries = formula.axes.queries
        if formula.q is None or formula.q.pieces:
            return None
        if place_of(formula.output_index, formula.output_shape, queries) != demand.mark:
            return None
        name = formula.q.value
        shape = resized(formula.output_shape, demand.mark, demand.places.count)
        at = place_of(formula.q.index, self._prims[name].shape, queries)
        apart = at is not None and _all_reads(site).count(name) == 1
        fewer = with_queries(site, demand.places, shape, narrow=apart)
        if fewer is None:
            return None
        own = {name: Demand(at, demand.places)} if at is not None and apart else {}
        for other in inputs_of(fewer):
            self._asks.setdefault(other, []).append(own.get(other))
        self._gone |= set(site.region)
        return Attended(fewer, own)

    def _operands(self, top: Prim, demand: Demand) -> dict[str, Mark] | None:
        """Return where the axis is in the operands of an operator, or None if it mixes places."""
        found: dict[str, Mark] = {}
        without: set[str] = set()
        stack: list[tuple[Prim, Mark | None]] = [(top, demand.mark)]
        while stack:
            prim, mark = stack.pop()
            if prim is not top and prim.value is not None:
                if mark is None:
                    without.add(prim.value)
                elif found.setdefault(prim.value, mark) != mark:
                    return None
                continue
            behind = self._behind(prim, mark, demand)
            if behind is None:
                return None
            stack += behind
        return None if without & found.keys() else found

    def _behind(self, prim: Prim, mark: Mark | None, demand: Demand) -> list[tuple[Prim, Mark | None]] | None:
        if isinstance(prim.form, Leaf):
            return self._of_leaf(prim, mark)
        if mark is None:
            return [(x, None) for x in prim.inputs]
        if isinstance(prim.form, Constant | Iota):
            return None
        marks = pulled(prim, mark, demand.places.n)
        return None if marks is None else list(zip(prim.inputs, marks, strict=True))

    def _of_leaf(self, prim: Prim, mark: Mark | None) -> list[tuple[Prim, Mark | None]] | None:
        known = mixing(self._graph, prim.value) if prim.value is not None else None
        if known is None or any(name not in self._prims for name in known.operands):
            return None if mark is not None or prim.value is None else []
        if mark is not None and mark.axis >= len(prim.shape) - known.last:
            return None
        operands = [self._prims[name] for name in known.operands]
        rank = len(prim.shape)
        if any(len(x.shape) > rank for x in operands):
            return None
        return [(x, None if mark is None else aligned(rank, mark, x.shape)) for x in operands]

    def _saved(self, name: str) -> Size:
        """Return how many multiplications a narrow value does without."""
        narrow = self._narrow[name]
        places = narrow.demand.places
        if isinstance(narrow.way, View):
            return ZERO
        site = self._sites.get(name)
        work = _work(self._prims[name]) if site is None else _site_work(site)
        one = work.divide(places.n)
        return ZERO if one is None else one * (places.n - places.count)


def _all_reads(site: AttentionSite) -> list[str | None]:
    """Return every value that a site reads, as often as it reads it."""
    formula = site.formula
    terms = [t for t, _ in formula.factors] + [t for t in (formula.bias, formula.sink) if t is not None]
    operands: list[str | None] = [x.value for x in formula.operands]
    return operands + [r.prim.value for t in terms for r in native_reads(t)]


def _site_work(site: AttentionSite) -> Size:
    return site.batch * site.heads * site.queries * site.keys * (site.qk_dim + site.v_dim)


def _work(top: Prim) -> Size:
    """Return the multiplications of the products inside an operator."""
    total, stack = ZERO, [top]
    while stack:
        prim = stack.pop()
        if isinstance(prim.form, Einsum) and len(prim.inputs) > 1:
            sizes: dict[int, Size] = {}
            for part, x in zip(prim.form.operands, prim.inputs, strict=True):
                sizes |= {label: n for label, n in zip(part, x.shape, strict=True) if n != ONE}
            total = total + product(sizes.values())
        stack += [x for x in prim.inputs if x.value is None]
    return total


def _live(graph: Graph, read_by: Callable[[str], Sequence[str] | None] = lambda name: None) -> set[str]:
    """Return the names of the nodes that outputs need."""
    live: set[str] = set()
    seen: set[str] = set()
    stack = list(graph.ends)
    while stack:
        name = stack.pop()
        if name in seen:
            continue
        seen.add(name)
        known = read_by(name)
        node = graph.producer(name)
        if known is not None:
            stack += known
        elif node is not None:
            live.add(node.name)
            stack += [v for v in node.inputs if v is not None]
    return live
