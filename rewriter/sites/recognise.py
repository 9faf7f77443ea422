"""Raise a graph: find every contraction with values whose weights are a softmax of query-key products."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from rewriter.algebra.index import Atom, Index, einsum_index, fresh, resolve
from rewriter.algebra.prims import Constant, Einsum, Form, Map, Prim, Softmax
from rewriter.algebra.sizes import ONE, product
from rewriter.algebra.term import VIEWS, Apply, Read, Term, depends_on, source, unfold
from rewriter.program.graph import Graph
from rewriter.sites.formula import Axes, Formula
from rewriter.sites.masks import analyse
from rewriter.sites.normalise import (
    NotWeights,
    Weights,
    asks_for_empty_rows,
    normalised_sum,
    weights_of,
)
from rewriter.sites.operands import choose_operand, native_reads
from rewriter.sites.refusal import Refusal
from rewriter.sites.roles import assign_roles
from rewriter.sites.scores import read_scores
from rewriter.sites.site import AttentionSite, EmptyRow, Facts
from rewriter.sites.values import Known

__all__ = ["recognise"]

_ON_DENOMINATORS = (Map("reciprocal"), Map("add"), Map("maximum"))


@dataclass
class _Search:
    """What is known of a graph while it is searched."""

    graph: Graph
    prims: Mapping[str, Prim]
    order: list[Prim] = field(default_factory=list)
    children: dict[Prim, list[Prim]] = field(default_factory=dict)
    normalised: dict[Prim, bool] = field(default_factory=dict)
    known: Known = field(default_factory=Known)
    raised: set[Prim] = field(default_factory=set)
    reasons: dict[Prim, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.order = _topological(self.prims.values())
        for prim in self.order:
            for x in dict.fromkeys(prim.inputs):
                self.children.setdefault(x, []).append(prim)
        for prim in self.order:
            self.normalised[prim] = _is_normaliser(prim) or (
                isinstance(prim.form, (Map, *VIEWS)) and any(self.normalised[x] for x in prim.inputs)
            )

    def native(self, prim: Prim) -> str | None:
        """Return the nearest named tensor that holds ``prim``: itself, or a view or cast of it."""
        at: Prim | None = prim
        while at is not None and at.value is None:
            following = self.children.get(at, [])
            at = following[0] if len(following) == 1 and _moves(following[0].form) else None
        return None if at is None else at.value

    def node(self, prim: Prim) -> str:
        """Return the native node that computes ``prim``, or the nearest one after it."""
        stack, seen = [prim], {prim}
        while stack:
            at = stack.pop(0)
            if at.value is not None:
                producer = self.graph.producer(at.value)
                return at.value if producer is None else producer.name
            for child in self.children.get(at, []):
                if child not in seen:
                    seen.add(child)
                    stack.append(child)
        return repr(prim)


def recognise(
    graph: Graph, prims: Mapping[str, Prim]
) -> tuple[tuple[AttentionSite, ...], tuple[Refusal, ...]]:
    """Return the sites of a graph and its near-misses, both in graph order."""
    search = _Search(graph, prims)
    sites: list[AttentionSite] = []
    for prim in search.order:
        if isinstance(prim.form, Einsum) and len(prim.inputs) == 2:
            if any(search.normalised[x] for x in prim.inputs):
                found = _at_contraction(search, prim)
            else:
                continue
        elif prim.form == Map("div"):
            found = _at_division(search, prim)
        else:
            continue
        if found is not None:
            sites.append(found)
    sites.sort(key=lambda s: graph.position[s.anchor])
    numbered = tuple(replace(s, id=f"{s.kind}.{k}") for k, s in enumerate(sites))
    return numbered, tuple(_refusals(search))


def _topological(roots: Iterable[Prim]) -> list[Prim]:
    order: dict[Prim, None] = {}
    for root in roots:
        stack = [root]
        while stack:
            at = stack[-1]
            if at in order:
                stack.pop()
                continue
            waiting = [x for x in at.inputs if x not in order]
            if waiting:
                stack.extend(waiting)
            else:
                order[at] = None
                stack.pop()
    return list(order)


def _is_normaliser(prim: Prim) -> bool:
    """Whether this may be where weights are normalised: a softmax, or a quotient by a sum."""
    if isinstance(prim.form, Softmax):
        return True
    if prim.form == Map("div"):
        return _leads_to_sum(prim.inputs[1])
    return prim.form == Map("mul") and any(_is_reciprocal(x) and _leads_to_sum(x) for x in prim.inputs)


def _is_reciprocal(prim: Prim) -> bool:
    while _moves(prim.form):
        prim = prim.inputs[0]
    return prim.form == Map("reciprocal")


def _leads_to_sum(prim: Prim, depth: int = 8) -> bool:
    """Whether this is a sum, seen through views, copies and what is done to denominators."""
    if isinstance(prim.form, Einsum):
        return len(prim.inputs) == 1
    if depth and (_moves(prim.form) or prim.form in _ON_DENOMINATORS):
        return any(_leads_to_sum(x, depth - 1) for x in prim.inputs)
    return False


def _moves(form: Form) -> bool:
    return isinstance(form, VIEWS) or (isinstance(form, Map) and form.fn in ("cast", "identity"))


def _output(search: _Search, anchor: Prim) -> tuple[str, Index, Index] | None:
    """Return the native result of an anchor, its index in new atoms, and the anchor's own index."""
    value = search.native(anchor)
    if value is None:
        return None
    result = search.prims[value]
    index = fresh(result.shape, "o")
    for at in source(Read(result, index)):
        if at.prim is anchor:
            return value, index, at.index
    return None


def _at_contraction(search: _Search, anchor: Prim) -> AttentionSite | None:
    located = _output(search, anchor)
    if located is None or not isinstance(anchor.form, Einsum):
        return None
    value, output, index = located
    operands, bound = einsum_index(anchor.form, anchor.shape, index, anchor.inputs)
    reads = [Read(x, i) for x, i in zip(anchor.inputs, operands, strict=True)]
    for k in (0, 1):
        if not search.normalised[anchor.inputs[k]]:
            continue
        weights = weights_of(reads[k], bound)
        if isinstance(weights, NotWeights):
            search.reasons.setdefault(weights.normaliser, weights.reason)
        if isinstance(weights, Weights):
            site = _build(search, value, output, weights, reads[1 - k], bound)
            if isinstance(site, AttentionSite):
                search.raised.add(weights.normaliser)
                return site
            search.reasons.setdefault(weights.normaliser, site)
    return None


def _at_division(search: _Search, anchor: Prim) -> AttentionSite | None:
    """Normalisation after the values: ``(sum exp(s) v) / (sum exp(s))``."""
    located = _output(search, anchor)
    if located is None or not _leads_to_sum(anchor.inputs[1]):
        return None
    value, output, index = located
    term = unfold(Read(anchor, index), budget=1)
    if not isinstance(term, Apply) or len(term.args) != 2:
        return None
    top, bottom = term.args
    if not isinstance(top, Read) or not isinstance(top.prim.form, Einsum) or len(top.prim.inputs) != 2:
        return None
    operands, bound = einsum_index(top.prim.form, top.prim.shape, top.index, top.prim.inputs)
    reads = [Read(x, i) for x, i in zip(top.prim.inputs, operands, strict=True)]
    for k in (0, 1):
        numerator = unfold(reads[k], budget=64)
        scores = normalised_sum(numerator, bottom, bound)
        if isinstance(scores, str):
            search.reasons.setdefault(anchor, scores)
        elif scores is not None:
            site = _build(search, value, output, Weights(scores, False, anchor), reads[1 - k], bound)
            if isinstance(site, AttentionSite):
                search.raised.add(anchor)
                return site
            search.reasons.setdefault(anchor, site)
    return None


def _build(
    search: _Search, value: str, output: Index, weights: Weights, v: Read, bound: Sequence[Atom]
) -> AttentionSite | str:
    in_v = depends_on(unfold(v, budget=32))
    scores = read_scores(weights.scores, bound, in_v)
    if isinstance(scores, str):
        return scores
    axes = assign_roles(scores.product, v, tuple(bound), output)
    if isinstance(axes, str):
        return axes
    if any(depends_on(t) & frozenset(axes.keys) for t, _ in scores.factors):
        return "the scores are multiplied by a tensor that depends on the key"
    guarded = weights.guarded
    if weights.guard is not None:
        found = _guards(search, weights.guard, scores.bias, axes)
        if found is None:
            return "the weights are replaced by 0 where something other than the mask says so"
        guarded = found
    known = frozenset((*axes.batch, *axes.heads, *axes.groups, *axes.queries, *axes.keys))
    if scores.bias is not None and not depends_on(scores.bias) <= known:
        return "what is added to the scores depends on an axis that is neither query nor key nor batch"
    q_groups = (axes.batch, (*axes.heads, *axes.groups), axes.queries, axes.features)
    q = choose_operand(scores.product.q, q_groups)
    k = choose_operand(scores.product.k, (axes.batch, axes.heads, axes.keys, axes.features))
    v_ = choose_operand(v, (axes.batch, axes.heads, axes.keys, axes.v_features))
    if isinstance(q, str) or isinstance(k, str) or isinstance(v_, str):
        return next(x for x in (q, k, v_) if isinstance(x, str))
    mask = analyse(scores.bias, axes, guarded, search.known)
    scale = scores.scale * q[1] * k[1]
    formula = Formula(
        axes, q[0], k[0], v_[0], scale, scores.factors, scores.bias, mask.rest, resolve(output),
        search.prims[value].shape,
    )  # fmt: skip
    if v_[1] != 1.0:
        return "the values are multiplied by a constant inside the product"
    return _site(search, value, formula, mask.facts, mask.empty_row)


def _guards(search: _Search, condition: Term, bias: Term | None, axes: Axes) -> bool | None:
    """Whether a condition guards rows without visible keys; False if it never holds, None if another."""
    if bias is not None and asks_for_empty_rows(condition, bias, axes.keys):
        return True
    rows = [a for a in (*axes.batch, *axes.heads, *axes.groups, *axes.queries) if a in depends_on(condition)]
    if not search.known.closed_term(condition) or not depends_on(condition) <= frozenset(rows):
        return None
    holds = search.known.array(condition, rows)
    if holds is None:
        return None
    if not holds.any():
        return False
    if bias is None or not search.known.closed_term(bias) or not depends_on(bias) <= {*rows, *axes.keys}:
        return None
    hidden = search.known.array(bias, [*rows, *axes.keys])
    if hidden is None:
        return None
    empty = (hidden == -np.inf).reshape(*holds.shape, -1).all(-1)
    return True if np.array_equal(empty, holds.astype(bool)) else None


def _site(
    search: _Search, value: str, formula: Formula, facts: Facts, empty_row: EmptyRow
) -> AttentionSite | str:
    axes, graph = formula.axes, search.graph
    terms: list[Term] = [t for t in (formula.bias, formula.rest) if t is not None]
    terms += [t for t, _ in formula.factors]
    reads = [r.prim.value for t in terms for r in native_reads(t)]
    if any(name is None for name in reads):
        return "a part of the bias is held by no tensor of the graph"
    inputs = dict.fromkeys([formula.q.value, formula.k.value, formula.v.value, *(n for n in reads if n)])
    region = graph.region([value], inputs)
    if not region:
        return "the result is also an operand"
    producer = graph.producer(value)
    assert producer is not None
    dtype = graph.values[value].dtype or search.prims[value].dtype or "float32"
    return AttentionSite(
        id="",
        kind="attention",
        anchor=producer.name,
        output=value,
        batch=axes.size("batch"),
        heads=axes.size("heads", "groups"),
        kv_heads=axes.size("heads"),
        queries=axes.size("queries"),
        keys=axes.size("keys"),
        qk_dim=axes.size("features"),
        v_dim=axes.size("v_features"),
        scale=formula.scale,
        normalizer="softmax",
        empty_row=empty_row,
        facts=facts,
        dtype=dtype,
        inputs=tuple(inputs),
        region=tuple(n.name for n in region),
        consumers=_costly(search, graph.escapes(region, [value])),
        signature=_signature(search.prims[value], frozenset(inputs)),
        formula=formula,
    )


def _costly(search: _Search, escapes: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Keep the escapes that matter: a view or a size that something else reads too costs nothing."""
    return tuple((v, r) for v, r in escapes if v in search.prims and not _is_cheap(search.prims[v]))


def _is_cheap(prim: Prim) -> bool:
    return isinstance(prim.form, VIEWS) or not prim.shape or prim.dtype in ("int64", "int32", "bool")


def _signature(output: Prim, stop: frozenset[str]) -> str:
    """Return a digest of the computation from ``stop`` to ``output``, weights left out."""
    known: dict[Prim, int] = {}
    digest = hashlib.sha256()
    for prim in _until(output, stop):
        known[prim] = len(known)
        what: object = prim.form
        if isinstance(prim.form, Constant):
            small = product(prim.shape) == ONE
            what = np.asarray(prim.form.load()).tobytes().hex() if small else "constant"
        elif prim.value in stop:
            what = "input"
        inputs = () if prim.value in stop else tuple(known[x] for x in prim.inputs)
        digest.update(repr((what, inputs, tuple(map(str, prim.shape)), prim.dtype)).encode())
    return digest.hexdigest()[:16]


def _until(output: Prim, stop: frozenset[str]) -> list[Prim]:
    order: dict[Prim, None] = {}
    stack = [output]
    while stack:
        at = stack[-1]
        waiting = [] if at.value in stop else [x for x in at.inputs if x not in order]
        if at in order or not waiting:
            order.setdefault(at)
            stack.pop()
        else:
            stack.extend(waiting)
    return list(order)


def _refusals(search: _Search) -> list[Refusal]:
    found = []
    for prim in search.order:
        if prim in search.raised or not (isinstance(prim.form, Softmax) or prim in search.reasons):
            continue
        reason = search.reasons.get(prim)
        if reason is None:
            axis = prim.form.axis if isinstance(prim.form, Softmax) else -1
            length = prim.shape[axis]
            reason = f"the softmax over {length} entries is not followed by a sum with values over that axis"
        found.append(Refusal(search.node(prim), reason))
    found.sort(key=lambda r: search.graph.position.get(r.anchor, 0))
    return found
