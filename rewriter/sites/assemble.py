"""From a formula to a site: names of the graph, the region, who else reads it."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Sequence
from functools import lru_cache

import numpy as np

from rewriter.algebra.prims import Constant, Form, Leaf, Prim
from rewriter.algebra.sizes import ONE, Size, product
from rewriter.algebra.term import VIEWS, Term
from rewriter.program.graph import Graph, Node
from rewriter.sites.formula import Formula
from rewriter.sites.geometry import geometry
from rewriter.sites.operands import native_reads
from rewriter.sites.origin import constant_operands
from rewriter.sites.search import Search
from rewriter.sites.site import AttentionSite, EmptyRow, Facts, Trait

__all__ = ["assemble"]


def assemble(
    search: Search,
    value: str,
    kind: str,
    formula: Formula,
    facts: Facts,
    empty_row: EmptyRow,
    normalizer: str,
    traits: tuple[Trait, ...],
) -> AttentionSite | str:
    """Return the site whose result is the native ``value``, or why it cannot be read from the graph."""
    axes, graph = formula.axes, search.graph
    terms: list[Term] = [
        t
        for t in (formula.bias, formula.rest, formula.sink, formula.scores, formula.weights)
        if t is not None
    ]
    terms += [t for t, _ in formula.factors]
    reads = [r.prim.value for t in terms for r in native_reads(t)]
    if any(name is None for name in reads):
        return "a part of the scores is held by no tensor of the graph"
    operands = [x.value for x in formula.operands]
    inputs = dict.fromkeys([*operands, *(n for n in reads if n)])
    whole = formula.q is not None and (formula.scores is not None or formula.weights is not None)
    steps = _until(search.prims[value], frozenset(operands if whole else inputs))
    if not whole:
        inputs.update(
            dict.fromkeys(p.value for p in steps if isinstance(p.form, Leaf) and p.value is not None)
        )
    region = _nodes(graph, _reached(steps, operands) if whole else steps, inputs if not whole else operands)
    if not region or value in inputs:
        return "the result is also an operand"
    producer = graph.producer(value)
    assert producer is not None
    return AttentionSite(
        id="",
        kind=kind,
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
        normalizer=normalizer,
        empty_row=empty_row,
        facts=facts,
        dtype=graph.values[value].dtype or search.prims[value].dtype or "float32",
        inputs=tuple(inputs),
        region=tuple(n.name for n in region),
        consumers=_costly(search, graph.escapes(region, [value])),
        signature=_signature(_until(search.prims[value], frozenset(inputs)) if whole else steps, inputs),
        formula=formula,
        traits=traits,
        constant=constant_operands(search.origin, formula),
        geometry=geometry(search.origin, formula),
    )


def _nodes(graph: Graph, steps: Iterable[Prim], stop: Container[str]) -> tuple[Node, ...]:
    """Return the nodes that compute the steps, in order; arithmetic of shapes is none of them."""
    found: dict[str, Node] = {}
    for prim in steps:
        node = None if prim.value is None or prim.value in stop else graph.producer(prim.value)
        if node is not None:
            found[node.name] = node
    return tuple(sorted(found.values(), key=lambda n: graph.position[n.name]))


def _reached(steps: Iterable[Prim], operands: Container[str]) -> list[Prim]:
    """Return the steps that depend on operands."""
    reached: dict[Prim, None] = {}
    for prim in steps:
        if prim.value in operands or any(x in reached for x in prim.inputs):
            reached[prim] = None
    return list(reached)


def _costly(search: Search, escapes: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Keep the escapes that matter: a view or a size that something else reads too costs nothing."""
    return tuple((v, r) for v, r in escapes if v in search.prims and not _is_cheap(search.prims[v]))


def _is_cheap(prim: Prim) -> bool:
    return isinstance(prim.form, VIEWS) or not prim.shape or prim.dtype in ("int64", "int32", "bool")


def _signature(steps: Iterable[Prim], stop: Container[str]) -> str:
    """Return a digest of the computation from ``stop``, weights left out."""
    known: dict[Prim, int] = {}
    texts: list[str] = []
    for prim in steps:
        known[prim] = len(known)
        inputs = () if prim.value in stop else tuple(known[x] for x in prim.inputs)
        texts.append(f"({_what(prim, stop)}, {inputs}, {_type(prim.shape, prim.dtype)})")
    return hashlib.sha256("".join(texts).encode()).hexdigest()[:16]


def _what(prim: Prim, stop: Container[str]) -> str:
    if isinstance(prim.form, Constant):
        small = product(prim.shape) == ONE
        return repr(np.asarray(prim.form.load()).tobytes().hex() if small else "constant")
    return "'input'" if prim.value in stop else _text(prim.form)


@lru_cache(1 << 10)
def _text(form: Form) -> str:
    return repr(form)


@lru_cache(1 << 10)
def _type(shape: tuple[Size, ...], dtype: str | None) -> str:
    return f"{tuple(map(str, shape))}, {dtype!r}"


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
