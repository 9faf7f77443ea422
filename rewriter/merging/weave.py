"""Merging tokens behind attentions, carrying them through a program, and telling them apart where need be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from rewriter.algebra.sizes import ONE, Size
from rewriter.lower.canonical import arrange_operand, emit_site, inputs_of
from rewriter.lower.emitter import Emitter, Handle
from rewriter.merging.fewer import View, site_with, view_of
from rewriter.merging.layout import Layout
from rewriter.program.graph import Graph, Node
from rewriter.program.program import OUTPUT, Build, Insertion, Program
from rewriter.sites.formula import Operand
from rewriter.sites.site import AttentionSite
from rewriter.sites.token_flow import TokenFlow

__all__ = ["Merging", "woven"]


@dataclass(frozen=True)
class Merging:
    """How many tokens are merged behind a site.

    Parameters
    ----------
    site
        Id of the site.
    r
        How many tokens join another one there.
    """

    site: str
    r: int


@dataclass(frozen=True)
class _Level:
    """Tokens between two mergings: how many, and the values that tell their sizes and their places."""

    tokens: Size
    size: str | None = None
    place: str | None = None


def woven(program: Program, flow: TokenFlow, mergings: Sequence[Merging], protect: int) -> list[Insertion]:
    """Return the insertions that merge tokens and keep every output.

    Parameters
    ----------
    program
        The original.
    flow
        Of its tokens.
    mergings
        At most one per site of the flow, ``r`` at least 1.
    protect
        First tokens that are never merged.
    """
    return _Weaver(program, flow, mergings, protect).insertions()


class _Weaver:
    def __init__(self, program: Program, flow: TokenFlow, mergings: Sequence[Merging], protect: int) -> None:
        self._graph: Graph = program.graph
        self._prims = program.prims()
        self._flow, self._protect = flow, protect
        sites = {site.id: site for site in flow.sites}
        self._merged: dict[str, tuple[AttentionSite, int]] = {}
        for merging in mergings:
            cut = flow.cuts[merging.site]
            if cut is not None:
                self._merged[cut] = (sites[merging.site], merging.r)
        self._results = {site.output: site for site in flow.sites}
        self._at: dict[str, int] = {}
        self._find_levels()
        self._views = self._find_views()
        self._live = self._find_live()
        self._levels = [_Level(flow.tokens)]
        self._made: list[Insertion] = []
        self._now: dict[str, str] = {}

    # what there is

    def _find_levels(self) -> None:
        """Find how often tokens have been merged in each value; one whose operands disagree carries none."""
        self._at[self._flow.start] = 0
        for name in self._flow.values:
            if name == self._flow.start:
                continue
            site = self._results.get(name)
            node = self._graph.producer(name)
            read = inputs_of(site) if site is not None else self._operands(node)
            carriers = [v for v in read if v in self._flow.values]
            levels = {self._read(v) if v in self._at else None for v in carriers}
            if len(levels) == 1 and (level := levels.pop()) is not None:
                self._at[name] = level

    def _operands(self, node: Node | None) -> list[str]:
        """Return the values that a node reads; for a part of a list of tensors, what the list is made of."""
        found: list[str] = []
        for name in node.inputs if node is not None else ():
            if name is not None:
                maker = None if name in self._prims else self._graph.producer(name)
                found += [name] if maker is None else self._operands(maker)
        return found

    def _read(self, name: str) -> int:
        """Return the level at which tokens are read from a value."""
        return self._at[name] + (name in self._merged)

    def _find_views(self) -> dict[str, View]:
        marks = {name: self._flow.values[name].tokens for name in self._at}
        found = {}
        for name, level in self._at.items():
            if level and name not in self._results:
                view = view_of(self._prims[name], marks, self._flow.tokens)
                if view is not None:
                    found[name] = view
        return found

    def _find_live(self) -> set[str]:
        """Return the names of the nodes that will be left: what outputs need."""
        live: set[str] = set()
        seen: set[str] = set()
        stack = list(self._graph.outputs)
        while stack:
            name = stack.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in self._merged:
                stack += [x.value for x in _compared(self._merged[name][0])]
            if name in self._views:
                stack.append(self._views[name].base)
            elif self._at.get(name) and name in self._results:
                stack += inputs_of(self._results[name])
            elif (node := self._graph.producer(name)) is not None:
                live.add(node.name)
                stack += [v for v in node.inputs if v is not None]
        return live

    # what is made

    def insertions(self) -> list[Insertion]:
        self._settle(self._flow.start)
        for node in self._graph.nodes:
            for name in node.outputs:
                if name in self._at and name != self._flow.start:
                    self._settle(name)
        return self._made

    def _settle(self, name: str) -> None:
        """Make what a value is replaced by, what it is merged to, and what readers of all tokens read."""
        level = self._at[name]
        if level and name in self._results:
            self._attend(self._results[name], level)
        elif name in self._views:
            self._view(name, level)
        if level:
            self._unmerge(name, level)
        if name in self._merged:
            self._merge(name, level)

    def _add(
        self,
        name: str,
        inputs: Mapping[str, tuple[Size, ...]],
        build: Build,
        instead: str | None = None,
        readers: frozenset[str] | None = None,
        function: str | None = None,
    ) -> str:
        taken = {made.name for made in self._made}
        name = next(n for k in count() if (n := f"{name}.{k}" if k else name) not in taken)
        values, shapes = tuple(inputs), tuple(inputs.values())
        self._made.append(Insertion(name, values, shapes, build, instead, readers, function))
        return name

    def _layout(self, name: str) -> Layout:
        flow = self._flow
        return Layout(self._prims[name].shape, flow.values[name], flow.tokens, flow.batch)

    def _given(self, name: str) -> tuple[str, tuple[Size, ...]]:
        """Return where a value is read from by what carries tokens, and its shape there."""
        if name not in self._at:
            return name, self._prims[name].shape
        if name not in self._merged:
            return self._held(name)
        shape = self._layout(name).shape(self._levels[self._read(name)].tokens)
        return f"{self._numbered(name)}.tokens", shape

    def _held(self, name: str) -> tuple[str, tuple[Size, ...]]:
        """Return what holds a value before tokens are merged in it, and its shape."""
        return self._now.get(name, name), self._layout(name).shape(self._levels[self._at[name]].tokens)

    def _numbered(self, name: str) -> str:
        return f"merge.{list(self._merged).index(name)}"

    def _readers(self, name: str, carrying: bool) -> frozenset[str]:
        """Return those that read a value, token by token or all tokens as they were."""
        found = [
            next(v for v in node.outputs if v)
            for node in self._graph.readers(name)
            if node.name in self._live and self._carries(node) is carrying
        ]
        return frozenset(found + [OUTPUT] * (name in self._graph.outputs and not carrying))

    def _carries(self, node: Node) -> bool:
        return any(v in self._at for v in node.outputs)

    def _view(self, name: str, level: int) -> None:
        view, tokens = self._views[name], self._levels[level].tokens
        given, shape = self._given(view.base)

        def build(e: Emitter, handles: Sequence[Any]) -> Handle:
            return view.emit(e, handles[0], tokens)

        self._now[name] = self._add(f"{_plain(name)}.fewer", {given: shape}, build, instead=name)

    def _attend(self, site: AttentionSite, level: int) -> None:
        """Let a site attend to merged tokens, each as often as it has been merged."""
        from rewriter.kernels.merge.lowering import emit_counted

        at = self._levels[level]
        assert at.size is not None, "tokens have been merged"
        fewer = site_with(site, at.tokens, self._layout(site.output).shape(at.tokens))
        names = inputs_of(site)
        inputs = dict(self._given(name) for name in names)
        inputs[at.size] = (self._flow.batch, at.tokens, ONE)

        def build(e: Emitter, handles: Sequence[Any]) -> Handle:
            size = _cast(e, handles[-1], site.dtype)
            own = dict(zip(names, handles[:-1], strict=True))
            return emit_site(fewer, e, own, lambda e, a: emit_counted(e, a, size))

        made = self._add(f"{site.id}.merged", inputs, build, site.output, function="attention_to_merged")
        self._now[site.output] = made

    def _merge(self, name: str, level: int) -> None:
        """Match tokens by the keys and queries of a site, and merge them in a value behind it."""
        from rewriter.kernels.merge.lowering import over_heads
        from rewriter.kernels.merge.matching import emit_match, emit_merge, emit_place, emit_take, sets_of

        site, r = self._merged[name]
        base, at, batch = self._numbered(name), self._levels[level], self._flow.batch
        layout, tokens, protect = self._layout(name), at.tokens, self._protect
        fewer = site_with(site, tokens, self._layout(site.output).shape(tokens))
        read = [x.value for x in _compared(fewer)]

        def match(e: Emitter, handles: Sequence[Any]) -> Handle:
            axes, own = fewer.formula.axes, dict(zip(dict.fromkeys(read), handles, strict=False))
            k, q = _compared(fewer)
            keys = (axes.batch, axes.heads, axes.keys, axes.features)
            queries = (axes.batch, (*axes.heads, *axes.groups), axes.queries, axes.features)
            arranged = (arrange_operand(e, own, x, g, site.dtype) for x, g in ((k, keys), (q, queries)))
            traits = [over_heads(e, x) for x in arranged]
            size = None if at.size is None else handles[-1]
            return emit_match(e, traits, sets_of(e, tokens, r, protect), size)

        def size_of(e: Emitter, handles: Sequence[Any], dtype: str) -> Handle:
            if at.size is not None:
                return _cast(e, handles[1], dtype)
            return e.expand(e.constant(1.0, dtype), (batch, tokens, ONE))

        def merge(e: Emitter, handles: Sequence[Any]) -> Handle:
            x = layout.flat(e, handles[-1], tokens)
            sets = sets_of(e, tokens, r, protect)
            mean, _ = emit_merge(e, x, size_of(e, handles, e.dtype(x)), handles[0], sets)
            return layout.own(e, mean, sets.left)

        def grow(e: Emitter, handles: Sequence[Any]) -> Handle:
            size = size_of(e, handles, site.dtype)
            return emit_merge(e, size, size, handles[0], sets_of(e, tokens, r, protect))[1]

        def place(e: Emitter, handles: Sequence[Any]) -> Handle:
            found = emit_place(e, handles[0], sets_of(e, tokens, r, protect))
            if at.place is None:
                return found
            column = e.reshape(found, (batch, tokens, ONE))
            return e.reshape(emit_take(e, column, handles[1]), (batch, self._flow.tokens))

        first = -(-(int(tokens) - protect) // 2)
        matched = {f"{base}.match": (batch, Size.of(2), Size.of(first))}
        sized = {at.size: (batch, tokens, ONE)} if at.size is not None else {}
        placed = {at.place: (batch, self._flow.tokens)} if at.place is not None else {}
        compared = {**dict(self._given(value) for value in read), **sized}
        self._add(f"{base}.match", compared, match, function="match_tokens")
        size = self._add(f"{base}.size", {**matched, **sized}, grow, function="merged_sizes")
        where = self._add(f"{base}.place", {**matched, **placed}, place, function="merged_places")
        self._add(
            f"{base}.tokens",
            {**matched, **sized, **dict([self._held(name)])},
            merge,
            instead=self._now.get(name, name),
            readers=self._readers(name, carrying=True),
            function="merge_tokens",
        )
        self._levels.append(_Level(tokens - r, size, where))

    def _unmerge(self, name: str, level: int) -> None:
        """Give all tokens to what reads a value otherwise than one by one."""
        from rewriter.kernels.merge.matching import emit_take

        readers = self._readers(name, carrying=False)
        if not readers:
            return
        at, layout, flow = self._levels[level], self._layout(name), self._flow
        assert at.place is not None, "tokens have been merged"

        def build(e: Emitter, handles: Sequence[Any]) -> Handle:
            x = layout.flat(e, handles[0], at.tokens)
            return layout.own(e, emit_take(e, x, handles[1]), flow.tokens)

        inputs = {**dict([self._held(name)]), at.place: (flow.batch, flow.tokens)}
        made, held = f"{_plain(name)}.unmerged", self._now.get(name, name)
        self._add(made, inputs, build, held, readers, function="unmerge_tokens")


def _compared(site: AttentionSite) -> tuple[Operand, Operand]:
    """Return the keys and the queries of a site."""
    k, q = site.formula.k, site.formula.q
    assert k is not None and q is not None, "it is attention"
    return k, q


def _cast(e: Emitter, x: Handle, dtype: str) -> Handle:
    return x if e.dtype(x) == dtype else e.map("cast", x, dtype=dtype)


def _plain(name: str) -> str:
    return name.removesuffix("_output_0").rpartition("/")[2] or name
