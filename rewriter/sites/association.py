"""In which order the factors of one product are multiplied, so that an attention is between them.

``y = sum p v w`` over keys and heads holds the attention ``sum p v``, but no tensor of the graph does. Which
two factors come first is decided by which axes are whose: the keys are what the weights are normalised over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from rewriter.algebra.equation import Equation, Path
from rewriter.algebra.index import fresh
from rewriter.algebra.prims import Einsum, Prim
from rewriter.algebra.term import Read
from rewriter.program.graph import Graph
from rewriter.sites.normalise import weights_of
from rewriter.sites.recognise import recognise
from rewriter.sites.search import Search
from rewriter.sites.weights import Weights

__all__ = ["associations"]

Labels = frozenset[str]


def associations(
    graph: Graph, prims: Mapping[str, Prim], equations: Mapping[str, Equation]
) -> dict[str, Path]:
    """Return an order for every product of three or more that no site of the graph is made of already.

    Parameters
    ----------
    graph, prims
        The native graph and its values in primitive form.
    equations
        By the value that holds the product. The operands are the inputs of the node that writes it.
    """
    sites, _ = recognise(graph, prims)
    inside = {
        value for site in sites for n in site.region for value in graph.nodes[graph.position[n]].outputs
    }
    search = Search(graph, prims)
    found = {}
    for value, equation in equations.items():
        prim = prims[value]
        text = equation.explicit([len(x.shape) for x in prim.inputs])
        explicit = None if text is None else Equation.parse(text)
        if value not in inside and isinstance(prim.form, Einsum) and explicit is not None:
            found[value] = _path(explicit, *_weights(search, prim, explicit))
    return found


def _weights(search: Search, prim: Prim, equation: Equation) -> tuple[int | None, Labels]:
    """Return which operand is weights, if one is, and which of its axes are keys."""
    for at, (x, labels) in enumerate(zip(prim.inputs, equation.operands, strict=True)):
        if x in search.normalised:
            for keys in _subsets([label for label in labels if label not in equation.output]):
                if _normalised_over(search, x, [labels.index(label) for label in keys]):
                    return at, frozenset(keys)
    for at, (x, labels) in enumerate(zip(prim.inputs, equation.operands, strict=True)):
        others = [label for k, part in enumerate(equation.operands) if k != at for label in part]
        shared = [label for label in labels if label not in equation.output and others.count(label) == 1]
        if x in search.chained and shared:
            return at, frozenset(shared)
    return None, frozenset()


def _subsets(labels: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for count in range(1, len(labels) + 1):
        yield from combinations(labels, count)


def _normalised_over(search: Search, x: Prim, axes: Sequence[int]) -> bool:
    index = fresh(x.shape, "w")
    keys = [a for axis in axes for a in index[axis].atoms]
    return isinstance(weights_of(search, Read(x, index), keys), Weights)


def _path(equation: Equation, weights: int | None, keys: Labels) -> Path:
    """Return the order: what belongs to the weights or to the values first, then these two, then the rest."""
    path = []
    while len(equation.operands) > 1:
        pair = _next(equation, weights, keys)
        path.append(pair)
        rest = [at for at in range(len(equation.operands)) if at not in pair]
        equation = equation.after(*pair)
        if weights in rest:
            weights = rest.index(weights)
        elif weights is not None:  # still weights, unless the keys are gone
            weights = len(rest) if keys & frozenset(equation.operands[-1]) else None
    return tuple(path)


def _next(equation: Equation, weights: int | None, keys: Labels) -> tuple[int, int]:
    """Return the two factors that are multiplied first."""
    sets = [frozenset(part) for part in equation.operands]
    summed = frozenset().union(*sets) - frozenset(equation.output)
    values = [at for at, labels in enumerate(sets) if at != weights and labels & keys]
    if weights is None or not values:
        return min(combinations(range(len(sets)), 2), key=lambda pair: _rank(sets, summed, *pair))
    if len(values) > 1:
        return values[0], values[1]
    w, v = sets[weights], sets[values[0]]
    for at, labels in enumerate(sets):
        if not labels & keys:
            others = frozenset().union(*(s for k, s in enumerate(sets) if k not in (at, values[0])))
            if labels & w - v and labels & v & summed - others:
                return values[0], at  # makes the heads of the values
            if labels & w & summed - v:
                return weights, at  # mixes the heads of the weights
    return weights, values[0]


def _rank(sets: Sequence[Labels], summed: Labels, a: int, b: int) -> int:
    """Rank two factors: one that scales a summed axis of the other, then a contraction, then a multiple."""
    both = sets[a] & sets[b] & summed
    others = frozenset().union(*(s for at, s in enumerate(sets) if at not in (a, b)))
    if both and (sets[a] <= sets[b] or sets[b] <= sets[a]):
        return 0
    if both - others:
        return 1
    return 2 if both else 3
