"""Which kind a site is: decided by what varies with the inputs, and by which axes are tokens."""

from __future__ import annotations

from rewriter.algebra.index import Atom
from rewriter.algebra.term import Apply, Read, Term, depends_on, leaves, unfold
from rewriter.sites.formula import Axes
from rewriter.sites.scores import Product, Scores
from rewriter.sites.search import Miss, Search
from rewriter.sites.weights import Weights

__all__ = ["kind_of"]

_BENDS = frozenset({"tanh", "sigmoid", "relu", "erf", "exp", "softplus", "maximum", "sin", "cos"})


def kind_of(search: Search, scores: Scores, weights: Weights, axes: Axes, v: Read) -> str | Miss:
    """Return the kind of a site, or what it is instead of one."""
    if weights.by == "softmax over queries":
        return _over_queries(scores, weights, axes)
    if weights.by == "sum":
        return _divided_by_sum(search, scores, v)
    if scores.product is None:
        return _without_product(search, scores.whole, axes, v)
    return _with_product(search, scores.product, axes, v)


def _with_product(search: Search, product: Product, axes: Axes, v: Read) -> str | Miss:
    q_varies, k_varies = search.varies(product.q.prim), search.varies(product.k.prim)
    if not k_varies:
        if not q_varies:
            return (
                "positional-attention"
                if search.varies(v.prim)
                else Miss("nothing here varies with the inputs")
            )
        return _predicted(search, axes, v)
    if not q_varies:
        return _learned_query(search, product, axes, v)
    if search.tokens(product.k, axes.keys) is False and search.tokens(product.k, axes.features):
        return "channel-attention"
    return "attention"


def _learned_query(search: Search, product: Product, axes: Axes, v: Read) -> str | Miss:
    in_k, in_v = (depends_on(unfold(x, budget=32)) for x in (product.k, v))
    of_a_query = any(a in in_k and a not in in_v for a in axes.batch)
    if of_a_query or _adds_a_query(search, product.k, frozenset(axes.keys)):
        return "additive-attention"
    return "latent-attention" if axes.queries else "pooling"


def _adds_a_query(search: Search, k: Read, keys: frozenset[Atom]) -> bool:
    """Whether the keys are a bent sum of something per key and something else: ``tanh(W q + U k)``."""
    stack: list[tuple[Term, bool]] = [(unfold(k, budget=32), False)]
    while stack:
        at, bent = stack.pop()
        if not isinstance(at, Apply):
            continue
        if bent and at.fn in ("add", "sub"):
            sides = [depends_on(t) & keys for t in at.args]
            if bool(sides[0]) != bool(sides[1]) and all(search.varies(t) for t in at.args):
                return True
        stack.extend((t, bent or at.fn in _BENDS) for t in at.args)
    return False


def _predicted(search: Search, axes: Axes, v: Read) -> str | Miss:
    if search.tokens(v, axes.keys):
        return "outlook-attention"
    return Miss(
        "the keys do not depend on the model's inputs: the softmax is over learned classes, experts or"
        " branches, not over tokens",
        "values",
    )


def _without_product(search: Search, scores: Term | None, axes: Axes, v: Read) -> str | Miss:
    assert scores is not None
    if not search.varies(scores):
        return "positional-attention"
    if not search.varies(v.prim):
        return Miss("the scores hold no product of a query with the keys, and the values are constant")
    if any(isinstance(t, Read) and _adds_a_query(search, t, frozenset(axes.keys)) for t in leaves(scores)):
        return "additive-attention"
    return Miss("the scores hold no product of a query with the keys")


def _over_queries(scores: Scores, weights: Weights, axes: Axes) -> str | Miss:
    if scores.product is None or not weights.over or not weights.over <= frozenset(axes.queries):
        return Miss("the softmax runs over another axis than the one that is summed with the values")
    if not weights.changed:
        return Miss("the softmax runs over the queries, not over the keys", "values", "slot-attention")
    return "slot-attention"


def _divided_by_sum(search: Search, scores: Scores, v: Read) -> str | Miss:
    product = scores.product
    if product is None or not all(search.varies(x.prim) for x in (product.q, product.k, v)):
        return Miss("a weighted mean: the weights are no function of queries and keys", "normaliser")
    return "unnormalised-attention"
