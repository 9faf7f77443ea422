"""Any kind of site by its definition, densely: what the self-check compares with the graph."""

from __future__ import annotations

from collections.abc import Mapping

from rewriter.algebra.sizes import ONE
from rewriter.lower.band import emit_band
from rewriter.lower.canonical import arrange_operand, emit_term, restore
from rewriter.lower.emitter import Emitter, Handle
from rewriter.lower.errors import EmitError
from rewriter.lower.heads import for_every_head
from rewriter.sites.formula import Formula
from rewriter.sites.site import AttentionSite

__all__ = ["emit_densely"]


def emit_densely(site: AttentionSite, e: Emitter, handles: Mapping[str, Handle]) -> Handle:
    """Emit a site whose scores or weights are read as a whole, or that has no softmax."""
    formula, axes = site.formula, site.formula.axes
    groups = (axes.batch, (*axes.heads, *axes.groups), axes.queries, axes.keys)
    if formula.weights is not None:
        weights = emit_term(e, handles, formula.weights, groups, site.dtype)
    elif formula.scores is not None:
        scores = emit_term(e, handles, formula.scores, groups, site.dtype)
        weights = _normalised(e, handles, site, scores)
    else:
        scores = e.map("mul", _products(e, handles, site), e.constant(formula.scale, site.dtype))
        for factor, divides in formula.factors:
            by = emit_term(e, handles, factor, (*groups[:3], ()), site.dtype)
            scores = e.map("div" if divides else "mul", scores, by)
        if formula.shift:
            scores = e.map("add", scores, e.constant(formula.shift, site.dtype))
        scores = _where_seen(e, site, scores)
        weights = _normalised(e, handles, site, scores)
    wanted = (site.batch, site.heads, site.queries, site.keys)
    weights = weights if tuple(e.shape(weights)) == wanted else e.expand(weights, wanted)
    v = arrange_operand(
        e, handles, formula.v, (axes.batch, axes.heads, axes.keys, axes.v_features), site.dtype
    )
    result = e.matmul(weights, for_every_head(e, v, site.batch, site.heads, site.kv_heads))
    return restore(
        e, result, formula, (*axes.batch, *axes.heads, *axes.groups, *axes.queries, *axes.v_features)
    )


def _where_seen(e: Emitter, site: AttentionSite, products: Handle) -> Handle:
    """Emit 0 in place of products that the proved band hides."""
    band = site.facts.band if site.formula.split else None
    if band is None:
        return products
    hidden = emit_band(e, band, e.iota(site.queries), e.iota(site.keys), site.dtype)
    seen = e.map("eq", hidden, e.constant(0.0, site.dtype))
    return e.map("where", seen, products, e.constant(0.0, site.dtype))


def _products(e: Emitter, handles: Mapping[str, Handle], site: AttentionSite) -> Handle:
    formula, axes = site.formula, site.formula.axes
    if formula.q is None or formula.k is None:
        raise EmitError("the scores are no product of queries and keys")
    heads = (*axes.heads, *axes.groups)
    q = arrange_operand(e, handles, formula.q, (axes.batch, heads, axes.queries, axes.features), site.dtype)
    k = arrange_operand(e, handles, formula.k, (axes.batch, axes.heads, axes.keys, axes.features), site.dtype)
    k = for_every_head(e, k, site.batch, site.heads, site.kv_heads)
    return e.matmul(q, e.permute(k, (0, 1, 3, 2)))


def _normalised(e: Emitter, handles: Mapping[str, Handle], site: AttentionSite, scores: Handle) -> Handle:
    match site.normalizer:
        case "softmax":
            return _softmax(e, handles, site.formula, site, scores)
        case "sum":
            return e.map("div", scores, e.reduce("sum", scores, 3))
        case "none":
            return scores
        case other:
            raise EmitError(f"weights by {other} are read as a whole")


def _softmax(
    e: Emitter, handles: Mapping[str, Handle], formula: Formula, site: AttentionSite, scores: Handle
) -> Handle:
    if formula.sink is None:
        weights = e.softmax(scores, 3)
    else:
        groups = (formula.axes.batch, (*formula.axes.heads, *formula.axes.groups), formula.axes.queries, ())
        sink = emit_term(e, handles, formula.sink, groups, site.dtype)
        full = e.expand(scores, (site.batch, site.heads, site.queries, site.keys))
        sink = e.expand(sink, (site.batch, site.heads, site.queries, ONE))
        weights = e.slice(e.softmax(e.concat([full, sink], 3), 3), 3, 0, site.keys)
    if site.empty_row != "zero":
        return weights
    return e.map("where", e.map("isnan", weights), e.constant(0.0, site.dtype), weights)
