"""Raise a graph: find every contraction with values whose weights come from queries and keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from rewriter.algebra.index import Index
from rewriter.algebra.prims import Einsum, Leaf, Map, Prim, Softmax
from rewriter.algebra.term import Read, Term, unfold
from rewriter.program.graph import Graph
from rewriter.sites.attention import build
from rewriter.sites.denominators import divided
from rewriter.sites.joined import build_joined
from rewriter.sites.linear import (
    Chain,
    as_chain,
    build_linear,
    build_unnormalised,
    is_sum_of_weights,
    without_denominator,
)
from rewriter.sites.normalise import weights_of
from rewriter.sites.quotients import quotient
from rewriter.sites.refusal import Refusal
from rewriter.sites.search import Miss, Search, holds_inverse, leads_to_sum
from rewriter.sites.site import AttentionSite
from rewriter.sites.softmaxes import over_queries
from rewriter.sites.sums import Sum, as_read, as_sum, spelled
from rewriter.sites.weights import NotWeights

__all__ = ["recognise"]


def recognise(
    graph: Graph, prims: Mapping[str, Prim]
) -> tuple[tuple[AttentionSite, ...], tuple[Refusal, ...]]:
    """Return the sites of a graph and its near-misses, both in graph order."""
    search = Search(graph, prims)
    found: dict[str, AttentionSite] = {}
    for prim in search.order:
        site = None
        if isinstance(prim.form, Einsum):
            if _may_sum_values(search, prim):
                site = _at_contraction(search, prim)
        elif _divides(prim):
            site = _at_division(search, prim)
        elif isinstance(prim.form, Map) and prim.form.fn == "add" and _adds_parts(search, prim):
            site = _at_addition(search, prim)
        if site is not None:
            found[site.output] = site
    sites = sorted(_outermost(graph, found), key=lambda s: graph.position[s.anchor])
    return tuple(replace(s, id=f"{s.kind}.{k}") for k, s in enumerate(sites)), tuple(_refusals(search, sites))


def _may_sum_values(search: Search, prim: Prim) -> bool:
    """Whether an operand may be weights: normalised, or a product that meets something that varies too."""
    operands = prim.inputs if len(prim.inputs) > 1 else (*prim.inputs, *prim.inputs[0].inputs)
    if not search.normalised.isdisjoint(operands):
        return True
    return not search.chained.isdisjoint(operands) and all(map(search.varies, prim.inputs))


def _divides(prim: Prim) -> bool:
    """Whether this may be a quotient by a sum."""
    if not isinstance(prim.form, Map) or prim.form.fn not in ("div", "mul"):
        return False
    return (prim.form.fn == "div" or holds_inverse(prim)) and any(map(leads_to_sum, prim.inputs))


def _outermost(graph: Graph, found: Mapping[str, AttentionSite]) -> list[AttentionSite]:
    """Keep one site where several share nodes: one with a softmax of products, then the larger one."""
    inside: set[str] = set()
    kept: dict[str, AttentionSite] = {}
    for site in sorted(found.values(), key=lambda s: (_rank(s), -len(s.region), graph.position[s.anchor])):
        values = {v for n in site.region for v in graph.nodes[graph.position[n]].outputs}
        if site.output not in inside and kept.keys().isdisjoint(values):
            kept[site.output] = site
            inside |= values
    return list(kept.values())


def _rank(site: AttentionSite) -> int:
    if site.kind in ("latent-attention", "pooling", "additive-attention", "positional-attention"):
        return 2
    return int(site.normalizer != "softmax")


def _at_contraction(search: Search, anchor: Prim) -> AttentionSite | None:
    located = search.output(anchor)
    if located is None:
        return None
    value, output, index = located
    total = as_sum(Read(anchor, index))
    if total is None:
        return None
    if len(total.factors) > 2 and any(
        isinstance(t, Read) and search.may_be_weights(t) for t in total.factors
    ):
        search.miss(
            anchor, Miss("weights, values and another tensor are multiplied in one product", "operands")
        )
    # a product that is summed by itself may be weights times values before it is taken apart further
    coarse = as_sum(Read(anchor, index), split=False) if len(total.factors) > 2 else None
    for sum_ in (total, *([] if coarse is None else [coarse])):
        for weights, v in _pairs(sum_):
            site = _weighted(search, value, output, weights, v, sum_)
            if site is not None:
                return site
    return _chained(search, value, output, total)


def _pairs(total: Sum) -> Iterator[tuple[Read, Read]]:
    """Yield both ways of reading a product as weights and values."""
    if len(total.factors) == 2 and total.scale == 1.0:
        a, b = map(as_read, total.factors)
        if a is not None and b is not None:
            yield a, b
            yield b, a


def _weighted(
    search: Search, value: str, output: Index, factor: Read, v: Read, total: Sum
) -> AttentionSite | None:
    bound = total.bound
    if not search.may_be_weights(factor):
        return None
    weights = weights_of(search, factor, bound)
    if isinstance(weights, NotWeights):
        search.miss(weights.normaliser, Miss(weights.reason, weights.reached))
        if weights.reached == "scores":
            search.parts[total.whole.prim] = weights.normaliser
        weights = over_queries(factor, bound)
    if weights is None:
        return None
    site = _keep(search, weights.normaliser, build(search, value, output, weights, factor, v, bound))
    if site is not None:
        search.raised.update(weights.beside)
    return site


def _keep(search: Search, normaliser: Prim, site: AttentionSite | Miss) -> AttentionSite | None:
    if isinstance(site, Miss):
        search.miss(normaliser, site)
        return None
    search.raised.add(normaliser)
    return site


def _chained(search: Search, value: str, output: Index, total: Sum) -> AttentionSite | None:
    anchor = total.whole.prim
    chain = as_chain(search, total.whole)
    if isinstance(chain, Chain):
        divided = without_denominator(search, chain)
        by = "none" if divided is None else "sum"
        return _keep(search, anchor, build_linear(search, value, output, divided or chain, by))
    for weights, v in _pairs(total):
        if search.may_be_product(weights) and search.varies(v.prim):
            site = build_unnormalised(search, value, output, weights, v, total.bound)
            if site is not None:
                return _keep(search, anchor, site)
    if isinstance(chain, Miss):
        search.miss(anchor, chain)
    return None


def _at_division(search: Search, anchor: Prim) -> AttentionSite | None:
    """Normalisation after the values: ``(sum exp(s) v) / (sum exp(s))``."""
    located = search.output(anchor)
    if located is None:
        return None
    value, output, index = located
    parts = quotient(unfold(Read(anchor, index), budget=4))
    if parts is None or len(parts[0]) != 1:
        return None
    (top,), bottom = parts
    total = as_sum(top)
    if total is None:
        return None
    chain = as_chain(search, top)
    if isinstance(chain, Chain) and is_sum_of_weights(search, bottom, chain) is True:
        return _keep(search, anchor, build_linear(search, value, output, chain, "sum"))
    return _normalised_after(search, anchor, value, output, total, bottom)


def _adds_parts(search: Search, prim: Prim) -> bool:
    """Whether sums with values over parts of one softmax are added here."""
    found = {search.part_of(x) for x in prim.inputs}
    return len(found) == 1 and None not in found


def _at_addition(search: Search, anchor: Prim) -> AttentionSite | None:
    """One softmax over keys in several tensors: ``p[:n] v1 + p[n:] v2``."""
    located = search.output(anchor)
    if located is None:
        return None
    value, output, index = located
    normaliser = search.part_of(anchor.inputs[0])
    assert normaliser is not None
    search.parts[anchor] = normaliser
    site = build_joined(search, value, output, Read(anchor, index))
    return None if site is None else _keep(search, normaliser, site)


def _normalised_after(
    search: Search, anchor: Prim, value: str, output: Index, total: Sum, bottom: Term
) -> AttentionSite | None:
    for at, factor in enumerate(total.factors):
        v = as_read(factor)
        if v is None or total.scale != 1.0:
            continue
        rest = unfold(v, budget=64)
        others = [t for f in (*total.factors[:at], *total.factors[at + 1 :]) for t in spelled(f)]
        found = divided(search, [*others, rest], bottom, anchor, total.bound)
        if isinstance(found, NotWeights):
            search.miss(anchor, Miss(found.reason, "normaliser"))
        elif found is not None and len(found[1]) == 1 and found[1][0] is rest:
            return _keep(search, anchor, build(search, value, output, found[0], None, v, total.bound))
    return None


def _refusals(search: Search, sites: Sequence[AttentionSite]) -> list[Refusal]:
    """Return the near-misses, without those that are a step of a site."""
    inside = {name for site in sites for name in site.region}
    found = []
    for prim in search.order:
        miss = None if prim in search.raised else search.misses.get(prim) or _unexplained(prim)
        if miss is not None:
            found.append(Refusal(search.node(prim), miss.reason, None, miss.nearest, miss.reached))
    # an operator may have several results
    found = list(dict.fromkeys(r for r in found if r.anchor not in inside))
    found.sort(key=lambda r: search.graph.position.get(r.anchor, 0))
    return found


def _unexplained(prim: Prim) -> Miss | None:
    """Say why a softmax that nothing was made of, or an operator that is attention by name, is no site."""
    match prim.form:
        case Softmax(axis):
            entries = f"the softmax over {prim.shape[axis]} entries"
            return Miss(f"{entries} is not followed by a sum with values over that axis", "normaliser")
        case Leaf(why) if "attention" in why.lower():
            return Miss(f"{why} is not looked into with these settings (active dropout, for one)", "scores")
        case _:
            return None
