"""From the scores to the product of queries and keys, and what was done to it on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rewriter.algebra.index import Atom, einsum_index
from rewriter.algebra.prims import Einsum
from rewriter.algebra.term import Apply, Number, Read, Term, depends_on, leaves, same, unfold
from rewriter.sites.normalise import parts_of

__all__ = ["MASKING", "Product", "Scores", "read_scores"]

MASKING = -1e30
"""A number at or below this hides a key: added to or put in place of any score it leaves itself."""


@dataclass(frozen=True)
class Product:
    """A contraction of queries and keys over feature atoms."""

    whole: Read
    q: Read
    k: Read
    features: tuple[Atom, ...]


@dataclass(frozen=True)
class Scores:
    """``scale · factor · q kᵀ + bias``.

    Parameters
    ----------
    scale
        Constant factor.
    factors
        Factors that are tensors (a learned temperature per head); each multiplies, or divides if
        the flag is set.
    bias
        What is added, or None.
    """

    product: Product
    scale: float
    factors: tuple[tuple[Term, bool], ...]
    bias: Term | None


def read_scores(scores: Term, keys: Sequence[Atom], values: frozenset[Atom]) -> Scores | str:
    """Find ``q kᵀ`` in the scores and write the rest as an affine function of it.

    Parameters
    ----------
    scores
        The scores as a function of batch, head, query and key atoms.
    keys
        Atoms the softmax runs over.
    values
        Atoms that the values depend on: an atom of the query side that they also have is batch.

    Returns
    -------
    Scores or str
        A sentence when there is no product of queries and keys, or it is used in another way.
    """
    start = scores
    tree = unfold(start, budget=64) if isinstance(start, Read) else start
    products = [p for p in map(lambda t: _product(t, keys), _distinct_reads(tree)) if p is not None]
    if not products:
        return "the scores hold no product of a query with the keys"
    relative = frozenset(a for p in products for a in p.q.atoms) - values
    true = [p for p in products if not _true_atoms(p.k) & relative or not relative]
    chosen = (true or products)[0]
    walked = _affine(tree, chosen.whole)
    if isinstance(walked, str):
        return walked
    scale, factors, bias = walked
    return Scores(chosen, scale, tuple(factors), bias)


def _true_atoms(at: Read) -> frozenset[Atom]:
    return depends_on(unfold(at, budget=32))


def _distinct_reads(tree: Term) -> list[Read]:
    found: list[Read] = []
    for at in leaves(tree):
        if isinstance(at, Read) and not any(same(at, other) for other in found):
            found.append(at)
    return found


def _product(at: Term, keys: Sequence[Atom]) -> Product | None:
    if not isinstance(at, Read) or not isinstance(at.prim.form, Einsum):
        return None
    indices, bound = einsum_index(at.prim.form, at.prim.shape, at.index, at.prim.inputs)
    factors = [Read(x, i) for x, i in zip(at.prim.inputs, indices, strict=True)]
    if len(factors) == 1:
        inner = unfold(factors[0], budget=1)
        if not isinstance(inner, Apply) or inner.fn != "mul" or inner.whole is None:
            return None
        factors = [t for t in inner.args if isinstance(t, Read)]
    if len(factors) != 2:
        return None
    wanted = frozenset(parts_of(keys))
    sides = [_true_atoms(f) for f in factors]
    on_key = [bool(s & wanted) for s in sides]
    if wanted and on_key[0] == on_key[1]:
        return None
    k = 0 if on_key[0] else 1
    features = parts_of(bound)
    if any(a not in sides[0] or a not in sides[1] for a in features):
        return None
    return Product(at, factors[1 - k], factors[k], features)


Walked = tuple[float, list[tuple[Term, bool]], Term | None]


def _affine(tree: Term, hole: Read) -> Walked | str:
    if same(tree, hole):
        return 1.0, [], None
    if not isinstance(tree, Apply):
        return "the product of queries and keys is used more than once in the scores"
    inside = [k for k, arg in enumerate(tree.args) if any(same(t, hole) for t in leaves(arg))]
    if len(inside) != 1:
        return f"the product of queries and keys enters the scores more than once (at {tree.fn})"
    walked = _affine(tree.args[inside[0]], hole)
    if isinstance(walked, str):
        return walked
    return _step(tree, inside[0], *walked)


def _step(
    tree: Apply, at: int, scale: float, factors: list[tuple[Term, bool]], bias: Term | None
) -> Walked | str:
    """Extend what is known of the operand at position ``at`` by one function."""
    others = [arg for k, arg in enumerate(tree.args) if k != at]
    match tree.fn, at:
        case "add", _:
            return scale, factors, _plus(bias, others[0])
        case "sub", 0:
            return scale, factors, _plus(bias, _negative(others[0]))
        case "neg", _:
            return -scale, factors, None if bias is None else _negative(bias)
        case ("mul", _) | ("div", 0):
            return _scaled(tree.fn, others[0], scale, factors, bias)
        case "where", (1 | 2):
            return _masked(tree, at, scale, factors, bias)
        case "tanh", _:
            return "the scores are soft-capped (tanh)"
        case _:
            return f"the scores are not affine in the product of queries and keys ({tree.fn})"


def _scaled(fn: str, by: Term, scale: float, factors: list[tuple[Term, bool]], bias: Term | None) -> Walked:
    rest = _times(bias, by, fn)
    if isinstance(by, Number) and by.value:
        return (scale * by.value if fn == "mul" else scale / by.value), factors, rest
    return scale, [*factors, (by, fn == "div")], rest


def _masked(
    tree: Apply, at: int, scale: float, factors: list[tuple[Term, bool]], bias: Term | None
) -> Walked | str:
    fill = tree.args[3 - at]
    if not isinstance(fill, Number) or fill.value > MASKING:
        return "scores are replaced where a condition holds, by something that does not hide the key"
    rest: Term = Number(0.0) if bias is None else bias
    branches = (rest, fill) if at == 1 else (fill, rest)
    return scale, factors, Apply("where", (tree.args[0], *branches), tree.dtype)


def _plus(bias: Term | None, other: Term) -> Term:
    return other if bias is None else Apply("add", (bias, other), None)


def _negative(term: Term) -> Term:
    return Number(-term.value) if isinstance(term, Number) else Apply("neg", (term,), None)


def _times(bias: Term | None, factor: Term, fn: str) -> Term | None:
    return None if bias is None else Apply(fn, (bias, factor), None)
