"""Build a site from normalised weights that meet values: its scores, its kind, what is proved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rewriter.algebra.index import Affine, Atom, Index, resolve
from rewriter.algebra.prims import Map, Prim, Softmax
from rewriter.algebra.term import VIEWS, Number, Read, Term, depends_on, leaves, substitute, unfold
from rewriter.sites.assemble import assemble
from rewriter.sites.formula import Axes, Formula, Operand
from rewriter.sites.guards import asks_for_empty_rows, repeats_mask
from rewriter.sites.kinds import kind_of
from rewriter.sites.masks import Mask, analyse
from rewriter.sites.operands import choose_operand
from rewriter.sites.products import Weighted, read_products
from rewriter.sites.roles import assign_roles, assign_roles_without_product, beside, in_order
from rewriter.sites.scores import Product, Scores, read_scores
from rewriter.sites.search import Miss, Search
from rewriter.sites.site import AttentionSite, Facts, Trait
from rewriter.sites.weights import Weights

__all__ = ["build", "finish"]


def build(
    search: Search,
    value: str,
    output: Index,
    weights: Weights,
    factor: Read | None,
    v: Read,
    bound: Sequence[Atom],
) -> AttentionSite | Miss:
    """Return the site that sums ``v`` with ``weights`` over ``bound``, or why it is none.

    Parameters
    ----------
    value, output
        The native result and its index.
    factor
        The weights as they meet the values; None where they are normalised after that.
    """
    in_v = depends_on(unfold(v, budget=32))
    scores = read_scores(search, weights.scores, bound, in_v)
    if isinstance(scores, Miss):
        return scores
    if _holds_scores(search, v, weights, scores):
        return Miss("the values are made of the same scores: a statistic of the weights, not attention")
    matrices = [m for m in (scores.matrix, weights.matrix) if m is not None]
    if scores.product is not None and matrices:
        scores = replace(scores, product=_unmixed(scores.product, matrices))
    axes = _roles(search, scores, v, tuple(bound), output)
    if isinstance(axes, str):
        return Miss(axes, "scores" if scores.product else "values")
    scores = _settle(scores, weights, axes)
    kind = kind_of(search, scores, weights, axes, v)
    if isinstance(kind, Miss):
        return kind
    if kind == "channel-attention" and scores.product is not None and not axes.heads:
        axes = _with_heads_beside_channels(axes, scores.product, v)
    if (weights.changed or weights.matrix is not None) and factor is None:
        return Miss("the weights are changed after the values have been summed", "operands", kind)
    node = search.graph.producer(value)
    operands = _operands(scores.product, v, axes, () if node is None else node.outputs)
    if isinstance(operands, str):
        return Miss(operands, "operands", kind)
    if scores.product is not None and _is_made_of(search.prims[operands[2].value], scores.product.whole.prim):
        scores = replace(scores, whole=weights.scores)  # one projection gives the scores and the values
    return finish(search, value, output, kind, weights, factor, scores, axes, operands)


def _holds_scores(search: Search, v: Read, weights: Weights, scores: Scores) -> bool:
    """Whether values are a function of the scores or of the weights that they meet."""
    product = scores.product
    read_by_v = {t.prim for t in leaves(unfold(v, budget=16)) if isinstance(t, Read)}
    if weights.normaliser in read_by_v:
        return True
    if product is None or not search.varies(product.q.prim):
        return False
    before = {x for p in read_by_v if isinstance(p.form, Softmax) for x in p.inputs}
    return any(_is_made_of(p, product.whole.prim) for p in read_by_v | before)


def _with_shown_heads(search: Search, axes: Axes, q: Read) -> Axes:
    """Tell heads from queries, where one head of keys serves all, by which axis the weights made."""
    own = (*axes.groups, *axes.queries)
    if axes.heads or len(own) < 2:
        return axes
    made = [search.tokens(q, [a]) is False for a in own]
    if not any(made) or all(made):
        return axes
    heads = tuple(a for a, head in zip(own, made, strict=True) if head)
    return replace(axes, groups=heads, queries=tuple(a for a in own if a not in heads))


def _roles(search: Search, scores: Scores, v: Read, bound: tuple[Atom, ...], output: Index) -> Axes | str:
    if scores.product is None:
        return assign_roles_without_product(_whole(scores), v, bound, output)
    axes = assign_roles(scores.product, v, bound, output)
    return axes if isinstance(axes, str) else _with_shown_heads(search, axes, scores.product.q)


def _with_heads_beside_channels(axes: Axes, product: Product, v: Read) -> Axes:
    near = beside((*axes.queries, *axes.keys), (product.q, product.k, v))
    heads = tuple(a for a in axes.batch if a in near)
    return replace(axes, heads=heads, batch=tuple(a for a in axes.batch if a not in near))


def _is_made_of(prim: Prim, part: Prim, steps: int = 16) -> bool:
    """Whether a tensor is another one, moved or with something done to each entry."""
    stack = [prim]
    while stack and steps:
        at, steps = stack.pop(), steps - 1
        if at is part:
            return True
        if isinstance(at.form, (Map, *VIEWS)):
            stack.extend(at.inputs)
    return False


def _whole(scores: Scores) -> Term:
    assert scores.whole is not None
    return scores.whole


def _unmixed(product: Product, matrices: Sequence[Term]) -> Product:
    """Give the heads that matrices mix the names of the heads that come out, one to one.

    From the product outwards: what comes out of the first matrix goes into the next one.
    """
    for matrix in matrices:
        at = unfold(matrix, budget=8) if isinstance(matrix, Read) else matrix
        if not isinstance(at, Read):
            continue
        held = _true_atoms(product.q) | _true_atoms(product.k)
        order = in_order(at.index)
        inner, outer = ([a for a in order if (a in held) is wanted] for wanted in (True, False))
        if [a.size for a in inner] == [a.size for a in outer]:
            names = {a: Affine.of(b) for a, b in zip(inner, outer, strict=True)}
            q, k = (substitute(x, names) for x in (product.q, product.k))
            assert isinstance(q, Read) and isinstance(k, Read)
            product = replace(product, q=q, k=k)
    return product


def _true_atoms(at: Read) -> frozenset[Atom]:
    return depends_on(unfold(at, budget=32))


def _settle(scores: Scores, weights: Weights, axes: Axes) -> Scores:
    """Read the scores as a whole where they are affine, but not in a way that forms understand."""
    keys = frozenset(axes.keys)
    if scores.product is None or scores.whole is not None:
        return scores
    known = frozenset((*axes.batch, *axes.heads, *axes.groups, *axes.queries, *axes.keys))
    strange = any(depends_on(t) & keys for t, _ in scores.factors)
    strange |= scores.bias is not None and not depends_on(scores.bias) <= known
    strange |= weights.by != "softmax"
    whole = scores.product.whole.prim  # read again, transposed for one, in what is added
    strange |= any(isinstance(t, Read) and t.prim is whole for t in leaves(scores.bias or Number(0.0)))
    return replace(scores, whole=weights.scores) if strange else scores


Operands = tuple[Operand | None, Operand | None, Operand, float]
"""Queries, keys, values, and the constant factor that was taken off the first two."""


def finish(
    search: Search,
    value: str,
    output: Index,
    kind: str,
    weights: Weights,
    factor: Read | None,
    scores: Scores,
    axes: Axes,
    operands: Operands,
) -> AttentionSite | Miss:
    """Prove what can be proved of the mask, and return the site; the arguments are as in `build`."""
    q, k, v_, scale = operands
    general = scores.whole is not None
    if general:
        mask = Mask(Facts(unknown=True), None, "never" if weights.guard is None else "zero")
    else:
        guarded = _guarded(search, weights, scores.bias, axes)
        if guarded is None:
            return Miss(
                "the weights are replaced by 0 where something other than the mask says so", "scores", kind
            )
        mask = analyse(scores.bias, axes, guarded, search.known)
    formula = Formula(
        axes,
        q,
        k,
        v_,
        1.0 if general else scores.scale * scale,
        () if general else scores.factors,
        None if general else scores.bias,
        None if general else mask.rest,
        resolve(output),
        search.prims[value].shape,
        softcap=None if general else scores.softcap,
        sink=weights.sink,
        scores=scores.whole,
        weights=factor if weights.changed or weights.matrix is not None else None,
    )
    facts, traits = mask.facts, _traits(weights, scores)
    plain = _plain(search, weights, scores, axes)
    if plain is not None:
        kind, facts, traits = "linear-attention", plain.mask.facts, ()
        formula = plain.formula(formula, scale)
    site = assemble(search, value, kind, formula, facts, mask.empty_row, weights.by, traits)
    return Miss(site, "operands", kind) if isinstance(site, str) else site


def _plain(search: Search, weights: Weights, scores: Scores, axes: Axes) -> Weighted | None:
    """Return the weights as products that are divided by their sum, if they are that and nothing else."""
    if scores.product is None or scores.matrix is not None:
        return None
    if weights != Weights(weights.scores, weights.normaliser, "sum"):
        return None
    return read_products(search, weights.scores, scores.product, axes)


def _traits(weights: Weights, scores: Scores) -> tuple[Trait, ...]:
    mixed = weights.matrix is not None or scores.matrix is not None
    found: list[tuple[Trait, bool]] = [
        ("softcap", scores.softcap is not None),
        ("sink", weights.sink is not None),
        ("head-mixing", mixed),
        (
            "score-function",
            scores.whole is not None and scores.product is not None and not mixed,
        ),
        ("weight-function", weights.changed),
    ]
    return tuple(trait for trait, present in found if present)


def _operands(product: Product | None, v: Read, axes: Axes, apart: Sequence[str]) -> Operands | str:
    v_ = choose_operand(v, (axes.batch, axes.heads, axes.keys, axes.v_features), False, apart)
    if isinstance(v_, str):
        return v_
    if product is None:
        return None, None, v_[0], 1.0
    groups = (*axes.heads, *axes.groups)
    q = choose_operand(product.q, (axes.batch, groups, axes.queries, axes.features), apart=apart)
    k = choose_operand(product.k, (axes.batch, axes.heads, axes.keys, axes.features), apart=apart)
    if isinstance(q, str) or isinstance(k, str):
        return q if isinstance(q, str) else str(k)
    return q[0], k[0], v_[0], q[1] * k[1]


def _guarded(search: Search, weights: Weights, bias: Term | None, axes: Axes) -> bool | None:
    """Whether rows without visible keys are guarded; None if the guard asks for something else."""
    if weights.guard is None:
        return weights.guarded
    if bias is not None and (
        asks_for_empty_rows(weights.guard, bias, axes.keys) or repeats_mask(weights.guard, bias)
    ):
        return True
    return _guards_known_rows(search, weights.guard, bias, axes)


def _guards_known_rows(search: Search, condition: Term, bias: Term | None, axes: Axes) -> bool | None:
    """Compare a guard that is known with the rows that a known bias hides; False if it never holds."""
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
