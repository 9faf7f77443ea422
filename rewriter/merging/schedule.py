"""How many tokens to merge behind which site: schedules that merge most at the front, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

from rewriter.algebra.prims import Einsum, Prim
from rewriter.merging.weave import Merging
from rewriter.program.graph import Graph
from rewriter.sites.token_flow import TokenFlow

__all__ = ["Cost", "choose", "front_loaded"]

STEPS = 16
"""Strengths that are told apart: from none to half of the tokens behind the first site."""

COUNTS = (4, 2, 3, 6, 12)
"""Numbers of sites that tokens are merged behind, first what mostly wins: the others then take one try."""


def front_loaded(tokens: int, protect: int, sites: Sequence[str], strength: float) -> list[Merging]:
    """Return a schedule that merges a share of the tokens behind the first site, then less and less.

    Early merging saves the most: all that comes behind works on fewer tokens.

    Examples
    --------
    >>> [m.r for m in front_loaded(101, 1, ["a", "b", "c"], 0.4)]
    [40, 17, 7]
    """
    found = []
    for at, site in enumerate(sites):
        body = tokens - protect
        r = min(int(body * strength * (1 - at / (len(sites) + 0.5)) + 1e-9), body // 2)
        if r:
            found.append(Merging(site, r))
            tokens -= r
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


def choose(
    tokens: int,
    protect: int,
    sites: Sequence[str],
    cost: Callable[[Sequence[Merging]], float],
    good: Callable[[Sequence[Merging]], bool],
) -> list[Merging]:
    """Return the schedule with the least operations of the good ones that were tried; maybe an empty one.

    For each number of sites, the largest strength that is good is looked for by bisection.

    Parameters
    ----------
    tokens, protect
        How many there are, and how many of them are never merged.
    sites
        Ids of the sites that tokens may be merged behind, in order.
    cost
        Operations of a schedule.
    good
        Whether a schedule keeps the budget: asked as seldom as possible.
    """
    best: list[Merging] = []
    for count in dict.fromkeys(min(n, len(sites)) for n in COUNTS):
        made = [front_loaded(tokens, protect, sites[:count], s / STEPS / 2) for s in range(STEPS + 1)]
        better = [s for s in range(1, STEPS + 1) if made[s] and cost(made[s]) < cost(best)]
        if not better or not good(made[better[0]]):
            continue
        low, high = better[0], STEPS + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if good(made[middle]) else (low, middle)
        best = made[low]
    return best
