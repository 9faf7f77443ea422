"""What stands between a weight and the maps that it is computed of."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from rewriter.algebra.frontends.axes import behaviour, source
from rewriter.algebra.prims import Concat, Constant, Einsum, Iota, Leaf, Map, Prim, Reduce, Softmax
from rewriter.algebra.sizes import ONE
from rewriter.algebra.term import VIEWS
from rewriter.program.graph import Graph

__all__ = ["Ancestry", "ancestry"]

_SUM, _PRODUCT, _IDENTITY = Map("add"), Map("mul"), Map("identity")

STEPS = 192
"""How many values are looked at between a weight and its sources."""


@dataclass(frozen=True)
class Ancestry:
    """The steps from maps to a weight.

    Parameters
    ----------
    reached
        Names of the maps that the weight is computed of.
    closed
        Whether it is computed of nothing else.
    steps
        What is computed on the way, the weight first.
    convolutions
        Ranks of the results of convolutions on the way that are more than a matrix product.
    resampled
        Whether a map is brought to another resolution on the way.
    """

    reached: frozenset[str]
    closed: bool
    steps: tuple[Prim, ...]
    convolutions: tuple[int, ...]
    resampled: bool

    @cached_property
    def pooled(self) -> Mapping[tuple[int, ...], str]:
        """Axes that are pooled, and how: ``mean`` (or a sum), ``max``."""
        found: dict[tuple[int, ...], str] = {}
        for prim in self.steps:
            match prim.form:
                case Einsum((labels,), output):
                    axes = tuple(k for k, label in enumerate(labels) if label not in output)
                    found[axes] = "mean and max" if found.get(axes) == "max" else "mean"
                case Reduce("max", axes):
                    found[axes] = "mean and max" if found.get(axes) == "mean" else "max"
        return found

    @cached_property
    def products(self) -> int:
        """How many products with a weight of the model there are."""
        return sum(len(_varying(p)) == 1 < len(p.inputs) for p in self.steps if isinstance(p.form, Einsum))

    @cached_property
    def weighted(self) -> bool:
        """Whether a softmax and a product of two values that both vary are on the way: a weighted mean."""
        softmax = any(isinstance(p.form, Softmax) for p in self.steps)
        return softmax and any(isinstance(p.form, Einsum) and len(_varying(p)) > 1 for p in self.steps)

    @cached_property
    def gathered(self) -> int:
        """How many values are added up after each is weighed by another one that has fewer axes."""
        inside = frozenset(self.steps)
        sums = (p for p in self.steps if p.form == _SUM)
        return max((sum(map(_is_weighed, _added(p, inside))) for p in sums), default=0)

    @cached_property
    def joins(self) -> bool:
        """Whether values are joined on the way."""
        return any(isinstance(p.form, Concat) for p in self.steps)


def ancestry(
    graph: Graph, prims: Mapping[str, Prim], start: Iterable[Prim], stop: frozenset[str], steps: int = STEPS
) -> Ancestry:
    """Return what stands between values and the maps ``stop``; operators that are leaves are looked behind.

    Parameters
    ----------
    graph, prims
        Of the program.
    start
        The weights.
    stop
        Names of the maps.
    steps
        How far to look: a weight that is further away is not closed.
    """
    todo = deque(start)
    seen: set[Prim] = set(todo)
    found: list[Prim] = []
    reached: set[str] = set()
    convolutions: list[int] = []
    closed, resampled = True, False
    while todo and len(found) < steps:
        prim = todo.popleft()
        if prim.value is not None and prim.value in stop:
            reached.add(prim.value)
            continue
        found.append(prim)
        if isinstance(prim.form, Leaf):
            above = _behind(graph, prims, prim)
            closed = closed and bool(above)
            rule = behaviour(graph, prim.value) if prim.value is not None else None
            convolutions += [len(prim.shape)] * (rule is not None and rule.rule == "convolved")
            resampled = resampled or (rule is not None and rule.rule == "resampled")
        else:
            above = prim.inputs
        todo += [x for x in above if x not in seen and not isinstance(x.form, Constant | Iota)]
        seen.update(above)
    closed = closed and not todo
    return Ancestry(frozenset(reached), closed, tuple(found), tuple(convolutions), resampled)


def _behind(graph: Graph, prims: Mapping[str, Prim], prim: Prim) -> tuple[Prim, ...]:
    """Return what the operator of a leaf reads."""
    node, _ = source(graph, prim.value or "")
    if node is None:
        return ()
    return tuple(prims[name] for name in node.inputs if name is not None and name in prims)


def _added(top: Prim, inside: frozenset[Prim]) -> list[Prim]:
    """Return what a sum of sums adds up."""
    found: list[Prim] = []
    stack = [top]
    while stack:
        prim = stack.pop()
        if prim in inside and (prim.form in (_SUM, _IDENTITY)):
            stack += prim.inputs
        else:
            found.append(prim)
    return found


def _is_weighed(prim: Prim) -> bool:
    if prim.form != _PRODUCT or len(_varying(prim)) < 2:
        return False
    return any(ONE in x.shape and x.shape != prim.shape for x in prim.inputs)


def _varying(prim: Prim) -> list[Prim]:
    return [x for x in prim.inputs if not _is_constant(x)]


def _is_constant(prim: Prim) -> bool:
    while isinstance(prim.form, VIEWS) and len(prim.inputs) == 1:
        (prim,) = prim.inputs
    return isinstance(prim.form, Constant)
