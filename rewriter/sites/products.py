"""Weights that are linear in the products of queries and keys, times factors and a mask."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from rewriter.algebra.index import Atom
from rewriter.algebra.prims import Prim
from rewriter.algebra.term import Apply, Number, Read, Term, depends_on, leaves, same, unfold
from rewriter.sites.formula import Axes, Formula
from rewriter.sites.masks import Mask, analyse
from rewriter.sites.masks.reader import is_truth
from rewriter.sites.scores import Product
from rewriter.sites.search import Search

__all__ = ["Weighted", "read_products"]


@dataclass(frozen=True)
class Weighted:
    """``scale · factors · q kᵀ + shift``, 0 where a mask hides the key.

    Parameters
    ----------
    scale, factors, shift
        As in `rewriter.sites.formula.Formula`.
    hidden
        0 where the key is seen, else -inf; None without a mask.
    mask
        What is proved of it: no mask, or a band and nothing else.
    """

    scale: float
    factors: tuple[tuple[Term, bool], ...]
    shift: float
    hidden: Term | None
    mask: Mask

    def formula(self, whole: Formula, scale: float = 1.0) -> Formula:
        """Return a formula that reads weights as a whole with these in their place.

        ``scale`` is the number that was taken off its operands.
        """
        return replace(
            whole,
            scale=self.scale * scale,
            factors=self.factors,
            shift=self.shift,
            bias=self.hidden,
            rest=self.mask.rest,
            scores=None,
            weights=None,
        )


def read_products(search: Search, weights: Term, product: Product, axes: Axes) -> Weighted | None:
    """Return weights as a linear function of the product; None if they are another, or masked otherwise."""
    tree = unfold(weights, budget=64) if isinstance(weights, Read) else weights
    steps = None if product.distance else _steps(search, tree, product.whole, axes)
    if steps is None or any(_of_keys(t, product, axes) for t, _ in steps.factors):
        return None
    hidden = None
    if steps.seen:
        seen = steps.seen[0] if len(steps.seen) == 1 else Apply("and", steps.seen, "bool")
        hidden = Apply("where", (seen, Number(0.0), Number(-np.inf)), "float32")
    mask = analyse(hidden, axes, False, search.known)
    if not (mask.facts.dense or mask.facts.only_band):
        return None
    factors = (*steps.factors, *((t, False) for t in product.factors))
    if factors and steps.shift:
        return None
    return Weighted(steps.scale * product.scale, factors, steps.shift, hidden, mask)


def _of_keys(factor: Term, product: Product, axes: Axes) -> bool:
    """Whether a factor differs from key to key, or is computed from the products of all keys."""
    if depends_on(factor) & _parts(axes.keys):
        return True
    operands = {product.q.prim, product.k.prim}
    stack = [t.prim for t in leaves(factor) if isinstance(t, Read)]
    seen: set[Prim] = set()
    while stack:
        prim = stack.pop()
        if prim is product.whole.prim:
            return True
        if prim not in seen and prim not in operands:
            seen.add(prim)
            stack.extend(prim.inputs)
    return False


@dataclass(frozen=True)
class _Steps:
    scale: float = 1.0
    shift: float = 0.0
    factors: tuple[tuple[Term, bool], ...] = ()
    seen: tuple[Term, ...] = ()

    def times(self, number: float) -> _Steps:
        return replace(self, scale=self.scale * number, shift=self.shift * number)

    def plus(self, number: float | None) -> _Steps | None:
        """Add a number to everything; None where it would be added to some."""
        if number is None or self.factors or self.seen:
            return None
        return replace(self, shift=self.shift + number)


def _steps(search: Search, tree: Term, hole: Read, axes: Axes) -> _Steps | None:
    """Collect what the hole is multiplied by, and what is added to it, on its way to the tree."""
    if same(tree, hole):
        return _Steps()
    if not isinstance(tree, Apply):
        return None
    inside = [k for k, arg in enumerate(tree.args) if any(same(t, hole) for t in leaves(arg))]
    if len(inside) != 1:
        return None
    steps = _steps(search, tree.args[inside[0]], hole, axes)
    if steps is None:
        return None
    return _step(search, tree, inside[0], steps, axes)


def _step(search: Search, tree: Apply, at: int, steps: _Steps, axes: Axes) -> _Steps | None:
    """Extend what is known of the operand at position ``at`` by one function."""
    others = [arg for k, arg in enumerate(tree.args) if k != at]
    match tree.fn, at, others:
        case "neg", _, _:
            return steps.times(-1.0)
        case "add", _, (by,):
            return steps.plus(_number(search, by))
        case "sub", 0, (by,):
            turned = steps.times(-1.0).plus(_number(search, by))
            return turned and turned.times(-1.0)
        case "sub", 1, (by,):
            return steps.times(-1.0).plus(_number(search, by))
        case "mul", _, (by,):
            return _multiplied(search, steps, by, axes)
        case "div", 0, (by,):
            return _divided(search, steps, by)
        case "where", 1, (condition, Number(0.0)):
            return replace(steps, seen=(*steps.seen, condition))
        case "where", 2, (condition, Number(0.0)):
            return replace(steps, seen=(*steps.seen, Apply("not", (condition,), "bool")))
        case _:
            return None


def _multiplied(search: Search, steps: _Steps, by: Term, axes: Axes) -> _Steps | None:
    number = _number(search, by)
    if number is not None:
        return steps.times(number)
    if not depends_on(by) & _parts(axes.keys):
        return replace(steps, factors=(*steps.factors, (by, False)))
    found = _as_mask(search, by, axes)
    if found is None:
        return None
    scale, seen = found
    return replace(steps.times(scale), seen=(*steps.seen, seen))


def _divided(search: Search, steps: _Steps, by: Term) -> _Steps | None:
    number = _number(search, by)
    if number is None:
        return replace(steps, factors=(*steps.factors, (by, True)))
    return steps.times(1.0 / number) if number else None


def _as_mask(search: Search, by: Term, axes: Axes) -> tuple[float, Term] | None:
    """Return a number and where a factor is that number, if it is 0 elsewhere."""
    match by:
        case Apply("cast", (condition,)) if is_truth(condition):
            return 1.0, condition
        case Apply("where", (condition, Number(value), Number(0.0))):
            return value, condition
        case Apply("where", (condition, Number(0.0), Number(value))):
            return value, Apply("not", (condition,), "bool")
    held = depends_on(by)
    atoms = [a for a in (*_parts_in_order(axes.queries), *_parts_in_order(axes.keys)) if a in held]
    if not search.known.closed_term(by) or not held <= frozenset(atoms):
        return None
    full = search.known.array(by, atoms)
    values = [] if full is None else np.unique(full[full != 0]).tolist()
    return (values[0], Apply("ne", (by, Number(0.0)), "bool")) if len(values) == 1 else None


def _number(search: Search, term: Term) -> float | None:
    if isinstance(term, Number):
        return term.value
    if depends_on(term) or not search.known.closed_term(term):
        return None
    value = search.known.array(term, [])
    return None if value is None else float(value)


def _parts_in_order(atoms: tuple[Atom, ...]) -> list[Atom]:
    return [p for a in atoms for p in a.parts()]


def _parts(atoms: tuple[Atom, ...]) -> frozenset[Atom]:
    return frozenset(_parts_in_order(atoms))
