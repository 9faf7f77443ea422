"""Attention without a softmax: two products of data in a row, whichever is taken first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

from rewriter.algebra.index import Atom, Index, resolve
from rewriter.algebra.prims import Prim, Softmax, runs_along
from rewriter.algebra.term import Apply, Number, Read, Term, depends_on, leaves, same, source, unfold
from rewriter.sites.assemble import assemble
from rewriter.sites.formula import Axes, Formula, Operand
from rewriter.sites.masks import analyse
from rewriter.sites.operands import choose_operand
from rewriter.sites.products import read_products
from rewriter.sites.quotients import inverse
from rewriter.sites.roles import assign_roles
from rewriter.sites.scores import Product, read_scores
from rewriter.sites.search import Miss, Search
from rewriter.sites.site import AttentionSite, Facts
from rewriter.sites.sums import Sum, as_read, as_sum, factors_of, parts_of, same_factors

__all__ = [
    "Chain",
    "as_chain",
    "build_linear",
    "build_unnormalised",
    "is_sum_of_weights",
    "without_denominator",
]


@dataclass(frozen=True)
class Chain:
    """``scale · sum over features and keys of q k v``: two contractions of three tensors that vary.

    Parameters
    ----------
    features, keys
        Atoms that q and k, and that k and v share and that are summed.
    factors
        Tensors that multiply the result and depend on neither.
    values_first
        The graph sums over the keys first.
    seen
        1 where a query sees a key, else 0; None where it sees all of them.
    """

    q: Read
    k: Read
    v: Read
    features: tuple[Atom, ...]
    keys: tuple[Atom, ...]
    scale: float
    factors: tuple[Term, ...] = ()
    values_first: bool = False
    seen: Term | None = None


def as_chain(search: Search, at: Term) -> Chain | Miss | None:
    """Return a read as two contractions in a row; None if it is not that, a `Miss` if it is no attention."""
    outer = as_sum(at)
    if outer is None or not 2 <= len(outer.factors) <= 3 or not all(map(search.varies, outer.factors)):
        return None
    for x, y, *rest in permutations([as_read(t) or t for t in outer.factors]):
        beside = all(not depends_on(_unfolded(t)) & frozenset(outer.bound) for t in rest)
        inner = _inner(search, y) if beside else None
        if inner is not None and isinstance(x, Read):
            found = _ends(search, outer, x, *inner)
            return replace(found, factors=tuple(rest)) if isinstance(found, Chain) else found
    return None


def _inner(search: Search, factor: Term) -> tuple[Sum, float, Term | None] | None:
    """Return a factor as a sum of a product of two, a number, and where it is a sum of what is seen."""
    tree = unfold(factor, budget=8) if isinstance(factor, Read) else factor
    scale, factors = factors_of(tree)
    inner = as_sum(factors[0]) if len(factors) == 1 else None
    if inner is None:
        return None
    inner, seen = _running(inner)
    if len(inner.factors) != 2 or not all(map(search.varies, inner.factors)):
        return None
    return (inner, scale, seen) if all(isinstance(f, Read) for f in inner.factors) else None


def _running(total: Sum) -> tuple[Sum, Term | None]:
    """Take the triangle of ones off a running sum, and the product that is summed apart."""
    if runs_along(total.whole.prim) is None or len(total.factors) != 2:
        return total, None
    triangle, summed = total.factors
    seen = unfold(triangle, budget=8) if isinstance(triangle, Read) else triangle
    seen = seen.args[0] if isinstance(seen, Apply) and seen.fn == "cast" else seen
    scale, factors = factors_of(unfold(summed, budget=1) if isinstance(summed, Read) else summed, 1)
    return replace(total, factors=tuple(as_read(t) or t for t in factors), scale=total.scale * scale), seen


def _ends(search: Search, outer: Sum, x: Read, inner: Sum, scale: float, seen: Term | None) -> Chain | Miss:
    a, b = (f for f in inner.factors if isinstance(f, Read))
    atoms = [_atoms(f) for f in (a, b)]
    bound = frozenset(parts_of(outer.bound))
    meets = [bool(found & bound) for found in atoms]
    if meets[0] == meets[1] or not outer.bound or not inner.bound:
        return Miss("two products follow one another, but share no chain of summed axes", "normaliser", _NAME)
    k, end = (a, b) if meets[0] else (b, a)
    scale *= outer.scale * inner.scale
    keys_last = Chain(end, k, x, inner.bound, outer.bound, scale)
    keys_first = Chain(x, k, end, outer.bound, inner.bound, scale, values_first=True, seen=seen)
    return keys_last if seen is None and _keys_are_summed_last(search, keys_last) else keys_first


_NAME = "linear-attention"


def _atoms(at: Read) -> frozenset[Atom]:
    return depends_on(unfold(at, budget=32))


def _keys_are_summed_last(search: Search, chain: Chain) -> bool:
    """Decide which of the two summed axes holds the tokens: what is shown, else the layout of the queries."""
    tokens = search.tokens(chain.k, chain.keys), search.tokens(chain.k, chain.features)
    if tokens in ((True, False), (True, None), (None, False)):
        return True
    if tokens in ((False, True), (None, True), (False, None)):
        return False
    return _last_axis(chain.q) & frozenset(chain.features) != frozenset()


def _last_axis(at: Read) -> frozenset[Atom]:
    *_, end = source(at)
    index = resolve(end.index)
    return index[-1].atoms if index else frozenset()


def build_linear(
    search: Search, value: str, output: Index, chain: Chain, normalizer: str
) -> AttentionSite | Miss:
    """Return the site of a chain.

    Parameters
    ----------
    value, output
        The native result and its index.
    normalizer
        ``none``, or ``sum`` where the result is divided by the sum of the weights.
    """
    origins = {_origin(x) for x in (chain.q, chain.k, chain.v)}
    if len(origins) < 3:
        return Miss("a product of a tensor with itself, not of queries, keys and values", "normaliser", _NAME)
    product = Product(chain.k, chain.q, chain.k, chain.features)
    axes = assign_roles(product, chain.v, chain.keys, output)
    if isinstance(axes, str):
        return Miss(axes, "normaliser", _NAME)
    if not axes.queries or not axes.v_features:
        return Miss("two products follow one another, but without queries and values", "normaliser", _NAME)
    if len(axes.queries) > 1 and not axes.batch and not axes.heads:
        return Miss(
            "two products with matrices that all of the batch shares: layers, not attention",
            "normaliser",
            _NAME,
        )
    return _finish(search, value, output, axes, chain, normalizer)


def _origin(at: Read) -> object:
    *_, end = source(at)
    return end.prim, tuple(map(str, (d.start for d in resolve(end.index))))


def _finish(
    search: Search, value: str, output: Index, axes: Axes, chain: Chain, normalizer: str
) -> AttentionSite | Miss:
    operands = _operands(chain.q, chain.k, chain.v, axes)
    if isinstance(operands, str):
        return Miss(operands, "operands", _NAME)
    shape = search.prims[value].shape
    factors = tuple((t, False) for t in chain.factors)
    if any(depends_on(t) & {*axes.keys, *axes.v_features} for t in chain.factors):
        return Miss(
            "the product of queries, keys and values is multiplied by a tensor of values", "scores", _NAME
        )
    formula = Formula(
        axes, *operands, chain.scale, factors, None, None, resolve(output), shape,
        values_first=chain.values_first,
    )  # fmt: skip
    facts = Facts(dense=True)
    if chain.seen is not None:
        hidden = Apply("where", (_unfolded(chain.seen), Number(0.0), Number(-math.inf)), "float32")
        mask = analyse(hidden, axes, False, search.known)
        if not (mask.facts.dense or mask.facts.only_band):
            return Miss("what a query sees of the sums of keys and values is no band", "scores", _NAME)
        formula, facts = replace(formula, bias=hidden, rest=mask.rest), mask.facts
    search.raised.update(_feature_maps(chain))
    site = assemble(search, value, _NAME, formula, facts, "never", normalizer, ())
    return Miss(site, "operands", _NAME) if isinstance(site, str) else site


def _operands(q: Read, k: Read, v: Read, axes: Axes) -> tuple[Operand, Operand, Operand] | str:
    """Return where queries, keys and values are read, or why one of them cannot be."""
    groups = (*axes.heads, *axes.groups)
    wanted = (
        (q, (axes.batch, groups, axes.queries, axes.features)),
        (k, (axes.batch, axes.heads, axes.keys, axes.features)),
        (v, (axes.batch, axes.heads, axes.keys, axes.v_features)),
    )
    found = []
    for at, order in wanted:
        chosen = choose_operand(at, order, peel=False)
        if isinstance(chosen, str):
            return chosen
        found.append(chosen[0])
    return found[0], found[1], found[2]


def _feature_maps(chain: Chain) -> Iterator[Prim]:
    """Yield the softmaxes that make features of queries and keys."""
    for at in (chain.q, chain.k):
        for term in leaves(unfold(at, budget=32)):
            if isinstance(term, Read) and isinstance(term.prim.form, Softmax):
                yield term.prim


def is_sum_of_weights(search: Search, bottom: Term, chain: Chain) -> bool | None:
    """Whether a denominator is ``q · sum of k``; None if it is, with something added or clamped."""
    if isinstance(bottom, Apply) and bottom.fn in ("add", "maximum") and len(bottom.args) == 2:
        sides = [is_sum_of_weights(search, t, chain) for t in bottom.args if not isinstance(t, Number)]
        return None if sides == [True] else False
    outer = as_sum(bottom)
    if outer is None:
        return False
    for k, factor in enumerate(outer.factors):
        tree = unfold(factor, budget=8) if isinstance(factor, Read) else factor
        inner = as_sum(tree)
        if inner is None:
            continue
        inner, seen = _running(inner)
        rest = [f for j, f in enumerate(outer.factors) if j != k]
        bound = (*outer.bound, *inner.bound)
        own = [*rest, *inner.factors, seen], [chain.q, chain.k, chain.seen]
        found, wanted = ([_unfolded(t) for t in side if t is not None] for side in own)
        if same_factors(found, wanted, bound, (*chain.features, *chain.keys)):
            return True
    return False


def without_denominator(search: Search, chain: Chain) -> Chain | None:
    """Return a chain without the factor that divides it by the sum of its weights; None if it has none."""
    for at, factor in enumerate(chain.factors):
        bottom = inverse(_unfolded(factor))
        if bottom is not None and is_sum_of_weights(search, bottom, chain):
            return replace(chain, factors=(*chain.factors[:at], *chain.factors[at + 1 :]))
    return None


def _unfolded(term: Term) -> Term:
    return unfold(term, budget=64) if isinstance(term, Read) else term


def build_unnormalised(
    search: Search, value: str, output: Index, factor: Read, v: Read, bound: Sequence[Atom]
) -> AttentionSite | Miss | None:
    """Return the site whose weights are a function of query-key products that is no normaliser."""
    name = "unnormalised-attention"
    scores = read_scores(search, factor, bound, _atoms(v), budget=16)
    product = None if isinstance(scores, Miss) else scores.product
    if product is None or isinstance(scores, Miss):
        return None
    function = _function(factor, product.whole)
    if function == "exp":
        return Miss("exponentials of the products are not divided by their sum over the keys", "normaliser")
    if not all(search.varies(x.prim) for x in (product.q, product.k, v)):
        return None
    axes = assign_roles(product, v, tuple(bound), output)
    if isinstance(axes, str) or not axes.queries or not axes.v_features:
        return Miss("two products follow one another, but without queries and values", "normaliser", name)
    operands = _operands(product.q, product.k, v, axes)
    if isinstance(operands, str):
        return Miss(operands, "operands", name)
    formula = Formula(
        axes, *operands, 1.0, (), None, None, resolve(output), search.prims[value].shape, weights=factor
    )  # fmt: skip
    facts = Facts(unknown=True)
    if function == "none":
        name = _NAME  # with a mask or a decay between the products
        plain = read_products(search, factor, product, axes)
        if plain is not None:
            formula, facts = plain.formula(formula), plain.mask.facts
    site = assemble(search, value, name, formula, facts, "never", function, ())
    return Miss(site, "operands", name) if isinstance(site, str) else site


def _function(factor: Read, hole: Read) -> str:
    """Return the name of the function that makes weights of scores; ``none`` if it only scales and masks."""
    at, names = unfold(factor, budget=64), []
    while isinstance(at, Apply):
        names.append(at.fn)
        inside = [t for t in at.args if any(same(x, hole) for x in leaves(t))]
        if not inside:
            break
        at = inside[0]
    bends = [n for n in names if n not in ("add", "sub", "mul", "div", "neg", "where", "cast")]
    return bends[0] if bends else "none"
