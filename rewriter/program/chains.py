"""Products of many tensors as chains of products of two, so that an attention between them has a name."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from itertools import count

from rewriter.algebra.equation import Equation, Path
from rewriter.algebra.prims import Prim
from rewriter.program.graph import Graph

__all__ = ["Chain", "Chains", "Product", "chains", "touched"]


@dataclass(frozen=True)
class Product:
    """A product of two values.

    Parameters
    ----------
    name
        Of the value that holds it.
    equation
        As the operator takes it.
    operands
        Names of the values that are multiplied.
    """

    name: str
    equation: str
    operands: tuple[str, str]


Chain = tuple[Product, ...]
"""In order. The last one is the value that was the product of all; the others are new."""

Chains = Mapping[str, Chain]
"""By the value that was the product of all."""

View = tuple[Graph, Mapping[str, Prim]]


def chains(graph: Graph, prims: Callable[[], Mapping[str, Prim]], split: Callable[[Chains], View]) -> Chains:
    """Return the chains that sites of a graph need; there are none in nearly every graph.

    Parameters
    ----------
    graph, prims
        The graph as it is, and its values in primitive form.
    split
        Returns both with products taken apart.
    """
    from rewriter.algebra.frontends.equations import equations
    from rewriter.sites.association import associations
    from rewriter.sites.recognise import recognise

    products = equations(graph)
    paths = associations(graph, prims(), products) if products else {}
    if not paths:
        return {}
    found = {value: _chain(graph, value, products[value], path) for value, path in paths.items()}
    sites, _ = recognise(*split(found))
    needed = {name for site in sites for name in (*site.region, *site.inputs, site.output)}
    return touched(found, needed)


def touched(all_: Chains, names: Container[str]) -> Chains:
    """Return the chains of which one of the new values is named."""
    return {value: chain for value, chain in all_.items() if any(p.name in names for p in chain[:-1])}


def _chain(graph: Graph, value: str, equation: Equation, path: Path) -> Chain:
    node = graph.producer(value)
    assert node is not None
    operands = [name for name in node.inputs if name is not None]
    taken = graph.values.keys() | graph.position.keys()
    free = (name for k in count() if (name := f"{value}_product_{k}") not in taken)
    chain = []
    for (a, b), two in zip(path, equation.along(path), strict=True):
        name = value if len(operands) == 2 else next(free)
        chain.append(Product(name, two.text, (operands[a], operands[b])))
        operands = [*(x for at, x in enumerate(operands) if at not in (a, b)), name]
    return tuple(chain)
