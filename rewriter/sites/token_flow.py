"""Through which values of a graph tokens flow one by one, from one attention to the next.

A value *carries* tokens if each of its tokens depends on the same token of the value that the flow starts at,
on what attention brings to it, and on nothing that tells tokens apart by their place. Then tokens may be
merged, and the sites behind be given fewer of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product as product_of

from rewriter.algebra.frontends.mixing import mixing
from rewriter.algebra.index import Affine, Atom, Index, atoms_of, resolve
from rewriter.algebra.prims import Leaf, Prim
from rewriter.algebra.sizes import ONE, Size, product
from rewriter.program.graph import Graph, Node
from rewriter.sites.carried import Mark, broadcast, carried
from rewriter.sites.formula import Operand
from rewriter.sites.operands import native_reads
from rewriter.sites.origin import Origin
from rewriter.sites.site import AttentionSite

__all__ = ["Carried", "TokenFlow", "place_of", "token_flow"]


_NEAREST = 64
"""Values before a site that a flow is looked for from."""


@dataclass(frozen=True)
class Carried:
    """Where the tokens are in a tensor, and where the batch is.

    Parameters
    ----------
    tokens, batch
        None for the batch where it has one element.
    """

    tokens: Mark
    batch: Mark | None


@dataclass(frozen=True, eq=False)
class TokenFlow:
    """The values that carry tokens.

    Parameters
    ----------
    start
        The value that the flow starts at.
    tokens, batch
        How many there are.
    values
        What is known of every value that carries them, in graph order.
    sites
        The sites whose queries and keys are the tokens, in graph order.
    cuts
        For each site the first value behind its result that all tokens flow through, or None.
    """

    start: str
    tokens: Size
    batch: Size
    values: Mapping[str, Carried]
    sites: tuple[AttentionSite, ...]
    cuts: Mapping[str, str | None]


def token_flow(
    graph: Graph, prims: Mapping[str, Prim], sites: Sequence[AttentionSite]
) -> tuple[TokenFlow | None, str]:
    """Return the longest flow of tokens through sites, and why there is none.

    Parameters
    ----------
    graph, prims
        The program.
    sites
        Those that may take part: attention without mask or bias.
    """
    if not sites:
        return None, "no site is attention without a mask or a bias"
    best: TokenFlow | None = None
    for first in sites:
        if best is not None and first in best.sites:
            continue
        longest = _longest(graph, prims, first, sites)
        if longest is not None and (best is None or len(longest.sites) > len(best.sites)):
            best = longest
    if best is None:
        return None, (
            f"the tokens of {sites[0].id} come from no value that holds them one by one: something before it"
            " tells or mixes them by their place, as rotary positions do"
        )
    return best, ""


def _longest(
    graph: Graph, prims: Mapping[str, Prim], first: AttentionSite, sites: Sequence[AttentionSite]
) -> TokenFlow | None:
    """Return the flow through a site that starts as early as it can."""
    best: TokenFlow | None = None
    behind = _dominators(graph, Origin(graph, prims), first)
    for value in [name for name in behind if name in prims][:_NEAREST]:
        found = _Walk(graph, prims, first, sites).flow(value)
        if found is None and best is not None:
            break
        best = found or best
    return best


def _dominators(graph: Graph, origin: Origin, site: AttentionSite) -> list[str]:
    """Return the values that all operands of a site are computed through, from the nearest on.

    The last is an input of the model, where there is but one behind them.
    """

    def depends(name: str | None) -> bool:
        """Whether numbers come from a value: sizes and weights are no way to an input."""
        return name is not None and (name not in origin.prims or origin.varies(origin.prims[name]))

    formula = site.formula
    names = dict.fromkeys(x.value for x in formula.operands)
    frontier = {name: graph.position[p.name] for name in names if (p := graph.producer(name)) is not None}
    found: list[str] = []
    inputs = {name for name in names if depends(name)} - frontier.keys()
    while frontier:
        name, at = max(frontier.items(), key=lambda item: item[1])
        if len(frontier) == 1:
            found.append(name)
        node = graph.nodes[at]
        frontier = {n: p for n, p in frontier.items() if p != at}
        for read in node.inputs:
            if read and depends(read):
                if (producer := graph.producer(read)) is None:
                    inputs.add(read)
                else:
                    frontier[read] = graph.position[producer.name]
    return [*found, *inputs] if len(inputs) == 1 else found


@dataclass(eq=False)
class _Walk:
    """One pass over the graph from one value."""

    graph: Graph
    prims: Mapping[str, Prim]
    first: AttentionSite
    candidates: Sequence[AttentionSite]
    known: dict[Prim, Carried | None] = field(default_factory=dict)
    values: dict[str, Carried] = field(default_factory=dict)

    def flow(self, start: str) -> TokenFlow | None:
        """Return the flow that starts at a value, if it reaches the first site."""
        shape = self.prims[start].shape
        batches: list[int | None] = [None]
        if self.first.batch != ONE:
            batches = [k for k, n in enumerate(shape) if n == self.first.batch]
        places = [k for k, n in enumerate(shape) if n == self.first.keys]
        for axis, batch in product_of(places, batches):
            if axis != batch:
                found = self._from(start, Carried(Mark(axis), None if batch is None else Mark(batch)))
                if found is not None:
                    return found
        return None

    def _from(self, start: str, carried_: Carried) -> TokenFlow | None:
        self.known = {self.prims[start]: carried_}
        self.values = {start: carried_}
        results = {site.output: site for site in self.candidates}
        reached: list[AttentionSite] = []
        producer = self.graph.producer(start)
        begin = 0 if producer is None else self.graph.position[producer.name] + 1
        for node in self.graph.nodes[begin:]:
            for name in node.outputs:
                site = results.get(name)
                if site is not None and (found := self._behind(site)) is not None:
                    self.known[self.prims[name]] = self.values[name] = found
                    reached.append(site)
                elif name in self.prims and (found := self._of(self.prims[name])) is not None:
                    self.values[name] = found
            if self.first.output in node.outputs and self.first not in reached:
                return None
        if self.first not in reached:
            return None
        cuts = _cuts(self.graph, self.values, reached)
        return TokenFlow(start, self.first.keys, self.first.batch, self.values, tuple(reached), cuts)

    def _of(self, prim: Prim) -> Carried | None:
        if prim not in self.known:
            self.known[prim] = None  # a leaf of itself
            self.known[prim] = self._leaf(prim) if isinstance(prim.form, Leaf) else self._form(prim)
        return self.known[prim]

    def _form(self, prim: Prim) -> Carried | None:
        operands = [self._of(x) for x in prim.inputs]
        if not any(operands):
            return None
        tokens = carried(prim, _tokens(operands), self.first.keys)
        if tokens is None:
            return None
        if self.first.batch == ONE:
            return Carried(tokens, None)
        batch = carried(prim, _batches(operands), self.first.batch)
        return None if batch is None else Carried(tokens, batch)

    def _leaf(self, prim: Prim) -> Carried | None:
        known = mixing(self.graph, prim.value) if prim.value is not None else None
        if known is None or not all(name in self.prims for name in known.operands):
            return None
        operands = [self.prims[name] for name in known.operands]
        found = [self._of(x) for x in operands]
        if not any(found) or any(len(x.shape) > len(prim.shape) for x in operands):
            return None
        free = len(prim.shape) - known.last
        tokens = broadcast(prim, operands, _tokens(found))
        if tokens is None or tokens.axis >= free:
            return None
        if self.first.batch == ONE:
            return Carried(tokens, None)
        batch = broadcast(prim, operands, _batches(found))
        return None if batch is None or batch.axis >= free else Carried(tokens, batch)

    def _behind(self, site: AttentionSite) -> Carried | None:
        """Return where the tokens are in the result of a site, if they are its queries and its keys."""
        formula, axes = site.formula, site.formula.axes
        if site.queries != self.first.keys or site.keys != self.first.keys or site.consumers:
            return None
        if formula.q is None or formula.k is None or formula.rest is not None:
            return None
        sides = ((formula.q, axes.queries), (formula.k, axes.keys), (formula.v, axes.keys))
        if not all(self._reads(x, atoms, axes.batch) for x, atoms in sides):
            return None
        named = {*axes.queries, *axes.keys}
        for term in (*(t for t, _ in formula.factors), *([formula.sink] if formula.sink else [])):
            for read in native_reads(term):
                if self._of(read.prim) is not None or named & atoms_of(read.index):
                    return None
        shape = formula.output_shape
        tokens = place_of(formula.output_index, shape, axes.queries)
        batch = place_of(formula.output_index, shape, axes.batch) if axes.batch else None
        if tokens is None or (batch is None and self.first.batch != ONE):
            return None
        return Carried(tokens, batch)

    def _reads(self, operand: Operand, atoms: tuple[Atom, ...], batch: tuple[Atom, ...]) -> bool:
        """Whether an operand reads the tokens along these atoms, each at its own place."""
        prim = self.prims[operand.value]
        found = self._of(prim)
        if found is None or operand.pieces:
            return False
        if place_of(operand.index, prim.shape, atoms) != found.tokens:
            return False
        return self.first.batch == ONE or place_of(operand.index, prim.shape, batch) == found.batch


def _tokens(operands: Sequence[Carried | None]) -> list[Mark | None]:
    return [None if x is None else x.tokens for x in operands]


def _batches(operands: Sequence[Carried | None]) -> list[Mark | None]:
    return [None if x is None else x.batch for x in operands]


def place_of(index: Index, shape: Sequence[Size], atoms: Sequence[Atom]) -> Mark | None:
    """Return where atoms lie in a tensor that is read whole along the axis that they are on."""
    wanted = list(atoms)
    for axis, dim in enumerate(resolve(index)):
        if not any(a in wanted for a in dim.atoms):
            continue
        order = _whole(dim, shape[axis])
        at = next((k for k in range(len(order)) if order[k : k + len(wanted)] == wanted), None)
        if at is None:
            return None
        behind = order[at + len(wanted) :]
        return Mark(axis, product(a.size for a in order[:at]), product(a.size for a in behind))
    return None


def _whole(dim: Affine, size: Size) -> list[Atom]:
    """Return the atoms of a dimension that is read from its beginning to its end, slow to fast."""
    found = dim.dense()
    if found is None or dim.start.terms or found[1] != ONE or product(a.size for a in found[0]) != size:
        return []
    return list(found[0])


def _cuts(
    graph: Graph, values: Mapping[str, Carried], sites: Sequence[AttentionSite]
) -> dict[str, str | None]:
    """Return for each site the first value at or behind its result that no token flows past."""
    inside = {name: graph.position[site.anchor] for site in sites for name in site.region}

    def carries(node: Node) -> bool:
        return node.name in inside or any(v in values for v in node.outputs)

    last: dict[str, int] = {}
    at: dict[str, int] = {}
    for name in values:
        producer = graph.producer(name)
        at[name] = -1 if producer is None else graph.position[producer.name]
        reads = [inside.get(r.name, graph.position[r.name]) for r in graph.readers(name) if carries(r)]
        last[name] = max(reads, default=-1)
    order = sorted(values, key=at.__getitem__)
    cuts: list[str] = []
    open_until = -1
    for name in order:
        if open_until <= at[name]:
            cuts.append(name)
        open_until = max(open_until, last[name])
    found: dict[str, str | None] = {}
    for site in sites:
        begin = graph.position[site.anchor]
        found[site.id] = next((c for c in cuts if at[c] >= begin), None)
    return found
