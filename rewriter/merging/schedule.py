"""How many tokens to merge behind which site: families of schedules, and what schedules cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from rewriter.algebra.prims import Einsum, Prim
from rewriter.merging.weave import Merging
from rewriter.program.graph import Graph
from rewriter.sites.token_flow import TokenFlow

__all__ = ["PARTS", "SKIPS", "STEPS", "Cost", "Shape", "schedule"]

STEPS = 128
"""Rungs of a ladder of schedules: shares of the tokens that are told apart."""


@dataclass(frozen=True)
class Shape:
    """Behind which sites a schedule merges: less and less from one to the next, down to nothing.

    What is merged early saves the most; but behind the very first sites tokens are not yet what they will be
    told apart by.

    Parameters
    ----------
    skip
        First sites that nothing is merged behind.
    part
        What part of the others tokens are merged behind: all for 1, the first half of them for 2.
    """

    skip: int
    part: int

    def sites(self, sites: Sequence[str]) -> Sequence[str]:
        """Return those that tokens are merged behind."""
        left = sites[self.skip :]
        return left[: -(-len(left) // self.part)]


SKIPS, PARTS = (1, 0, 2), (2, 4, 1)
"""Of the shapes that there are; first what mostly wins."""


def schedule(tokens: int, protect: int, sites: Sequence[str], share: float) -> list[Merging]:
    """Return a schedule that merges a share of the tokens altogether; at most half of them behind a site.

    Examples
    --------
    >>> [m.r for m in schedule(101, 1, ["a", "b", "c"], 0.6)]
    [30, 20, 10]
    """
    steps, body, found = len(sites) * (len(sites) + 1) // 2, max(tokens - protect, 0), []
    left = body
    for at, site in enumerate(sites):
        r = min(int(body * share * (len(sites) - at) / steps + 1e-9), left // 2)
        if r:
            found.append(Merging(site, r))
            left -= r
    return found


class Cost:
    """Floating-point operations of what a flow of tokens goes through, as a function of the schedule.

    Parameters
    ----------
    graph, prims
        The program.
    flow
        Of its tokens.
    """

    def __init__(self, graph: Graph, prims: Mapping[str, Prim], flow: TokenFlow) -> None:
        def place(name: str) -> int:
            producer = graph.producer(name)
            return -1 if producer is None else graph.position[producer.name]

        self._tokens = int(flow.tokens)
        self._cuts = {site: place(cut) for site, cut in flow.cuts.items() if cut is not None}
        self._steps: list[tuple[int, float, float]] = []
        attended = {site.output: site for site in flow.sites}
        for name in flow.values:
            site = attended.get(name)
            if site is not None:
                width = (site.qk_dim + site.v_dim).known() or 0
                self._steps.append((place(name), 0.0, 2.0 * (site.heads.known() or 1) * width))
            else:
                self._steps.append((place(name), _products(prims[name]) / self._tokens, 0.0))

    def __call__(self, mergings: Sequence[Merging]) -> float:
        """Return the operations for one element of a batch."""
        taken = sorted((self._cuts[m.site], m.r) for m in mergings)
        total, left, at = 0.0, self._tokens, 0
        for place, each, pairs in sorted(self._steps):
            while at < len(taken) and taken[at][0] < place:
                left -= taken[at][1]
                at += 1
            total += each * left + pairs * left * left
        return total


def _products(prim: Prim) -> float:
    """Return the operations of the products inside of the operator that writes a value."""
    total, stack = 0.0, [prim]
    while stack:
        at = stack.pop()
        if isinstance(at.form, Einsum) and len(at.inputs) > 1:
            sizes = {
                label: n.known() or 1
                for labels, x in zip(at.form.operands, at.inputs, strict=True)
                for label, n in zip(labels, x.shape, strict=True)
            }
            total += 2.0 * prod(sizes.values())
        stack.extend(x for x in at.inputs if x.value is None)
    return total
