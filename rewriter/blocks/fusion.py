"""How a model joins its streams: which attention asks which stream, and what papers call the whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rewriter.algebra.prims import Map, Prim
from rewriter.blocks.streams import Streams, inputs_behind
from rewriter.program.graph import Graph
from rewriter.program.program import Program
from rewriter.rules.match import Matcher
from rewriter.rules.pattern import any_of, number, sigmoid, tanh, tensor
from rewriter.sites.site import AttentionSite

__all__ = ["LINKS", "TOPOLOGIES", "Fusion", "Link", "fusion"]

TOPOLOGIES = {
    "early fusion": "every attention is over the tokens of all streams",
    "hierarchical fusion": "attention within each stream, and then over the tokens of several",
    "late fusion": "attention within each stream only; what comes out is joined afterwards",
    "bottleneck fusion": "each stream attends to itself and to learned tokens that all of them share",
    "bidirectional cross-attention": "two streams ask each other",
    "cross-attention": "one stream asks another",
}
"""What a model of several streams may be called, and what each means."""

LINKS = {
    "bidirectional": "two cross-attentions that swap their sources; neither reads the other's result",
    "two-way": "two cross-attentions that swap their sources; the second reads the first one's result",
    "gated cross-attention": "x + g · attention(x, y), g a tanh, a sigmoid or a number but 1",
}
"""What two streams may be joined by, and what each computes."""


@dataclass(frozen=True)
class Link:
    """A place where streams meet.

    Parameters
    ----------
    kind
        A key of `LINKS`.
    sites
        Ids of the attentions.
    output
        Name of the value that holds the result, of the last of the sites.
    streams
        Names of the streams: the one that asks first.
    """

    kind: str
    sites: tuple[str, ...]
    output: str
    streams: tuple[str, ...]


@dataclass(frozen=True)
class Fusion:
    """How a model joins its streams.

    Parameters
    ----------
    streams
        Names of model inputs, of feature maps that are computed of several, and of learned tokens, as far as
        attention reads them.
    topology
        A key of `TOPOLOGIES`, or None where a model has one stream or the graph does not show it.
    links
        In graph order.
    """

    streams: tuple[str, ...]
    topology: str | None
    links: tuple[Link, ...]


@dataclass(frozen=True)
class _Asked:
    """A site, the streams that ask, and those that are asked; learned tokens are told apart."""

    site: AttentionSite
    asks: frozenset[str]
    asked: frozenset[str]
    learned: frozenset[str]

    @property
    def crosses(self) -> bool:
        return bool(self.asks) and bool(self.asked) and self.asks.isdisjoint(self.asked)


def fusion(program: Program) -> Fusion:
    """Return how the streams of a program meet in its attention; what the graph does not show is left out."""
    streams = Streams(program)
    found = [_asked(streams, site) for site in program.sites]
    names = dict.fromkeys(n for a in found for n in sorted(a.asks | a.asked | a.learned))
    links = [*_swapped(program.graph, found), *_gated(program, streams, found)]
    links.sort(key=lambda link: _place(program.graph, link.output))
    return Fusion(tuple(names), _topology(program, found, links), tuple(links))


def _asked(streams: Streams, site: AttentionSite) -> _Asked:
    asks, asked = streams.queries(site), streams.keys(site)
    learned = frozenset(name for name in asks | asked if streams.learned(name))
    return _Asked(site, asks - learned, asked - learned, learned & asked)


def _topology(program: Program, found: Sequence[_Asked], links: Sequence[Link]) -> str | None:
    crossing = [a for a in found if a.crosses]
    if crossing:
        pairs = any(link.kind in ("bidirectional", "two-way") for link in links)
        return "bidirectional cross-attention" if pairs else "cross-attention"
    own = [a for a in found if len(a.asked) == 1 and a.asks == a.asked]
    joint = [a for a in found if len(a.asked) > 1]
    streams = {name for a in own for name in a.asked}
    if any(a.learned & b.learned and a.asked != b.asked for a in own for b in own):
        return "bottleneck fusion"
    if joint:
        return "hierarchical fusion" if found.index(joint[0]) and len(streams) > 1 else "early fusion"
    return "late fusion" if len(streams) > 1 and _meet(program.graph, streams) else None


def _meet(graph: Graph, streams: set[str]) -> bool:
    """Whether an output is computed of several streams."""
    inputs = frozenset(streams)
    return any(len(inputs_behind(graph, inputs, output)) > 1 for output in graph.outputs)


def _swapped(graph: Graph, found: Sequence[_Asked]) -> Iterator[Link]:
    """Yield pairs of cross-attentions that swap their sources, each site in one at most."""
    open_: list[_Asked] = []
    for b in found:
        if not b.crosses:
            continue
        a = next((a for a in open_ if (a.asks, a.asked) == (b.asked, b.asks)), None)
        if a is None:
            open_.append(b)
            continue
        open_.remove(a)
        after = _reads(graph, b.site, a.site.output)
        ids = (a.site.id, b.site.id)
        streams = (*sorted(a.asks), *sorted(a.asked))
        yield Link("two-way" if after else "bidirectional", ids, b.site.output, streams)


def _reads(graph: Graph, site: AttentionSite, value: str) -> bool:
    """Whether a site is computed of a value."""
    first = _place(graph, value)
    stack, seen = [site.output], {site.output}
    while stack:
        node = graph.producer(stack.pop())
        if node is None or graph.position[node.name] < first:
            continue
        if value in node.inputs:
            return True
        above = [v for v in node.inputs if v is not None and v not in seen]
        seen.update(above)
        stack += above
    return False


def _place(graph: Graph, value: str) -> int:
    node = graph.producer(value)
    return -1 if node is None else graph.position[node.name]


_NEAR = 8
"""How many operators a gate and its projection may have behind an attention."""

_x, _z, _g = tensor("x"), tensor("z"), any_of("", one=number("g"), several=tensor("g"))

_GATED = _x + any_of("", tanh=tanh(_g), sigmoid=sigmoid(_g)) * _z
_SCALED = number("c") * _z
"""What a gate that is one learned number is where a graph holds it as it comes out."""


def _gated(program: Program, streams: Streams, found: Sequence[_Asked]) -> Iterator[Link]:
    """Yield sums of a stream and what it asked another one for, behind a gate."""
    matched = Matcher()
    prims = program.prims()
    for a in found:
        name = _first_sum(program.graph, prims, streams, a.site.output) if a.crosses else None
        if name is not None and _is_gated(program.graph, matched, prims[name], a.site.output):
            yield Link("gated cross-attention", (a.site.id,), name, (*sorted(a.asks), *sorted(a.asked)))


def _is_gated(graph: Graph, matched: Matcher, total: Prim, value: str) -> bool:
    """Whether a sum has a gate, or the term that is computed of a value has a number for one."""
    if matched(_GATED, total) is not None:
        return True
    scaled = [matched(_SCALED, term) for term in total.inputs if _is_behind(graph, term, value)]
    return any(bound is not None and bound.numbers["c"] != 1 for bound in scaled)


def _is_behind(graph: Graph, term: Prim, value: str) -> bool:
    """Whether a term is a value, or computed of it in a few steps."""
    front = {term.value}
    for _ in range(_NEAR):
        if value in front:
            return True
        nodes = [graph.producer(name) for name in front if name is not None]
        front = {name for node in nodes if node is not None for name in node.inputs}
    return False


def _first_sum(graph: Graph, prims: Mapping[str, Prim], streams: Streams, value: str) -> str | None:
    """Return the nearest value that is computed of another one and is the sum of two that vary."""
    front = [value]
    for _ in range(_NEAR):
        nodes = {node.name: node for name in front for node in graph.readers(name)}
        front = [output for node in nodes.values() for output in node.outputs if output in prims]
        for name in front:
            prim = prims[name]
            if prim.form == Map("add") and all(map(streams.varies, prim.inputs)):
                return name
    return None
