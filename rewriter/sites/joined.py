"""Keys in several tensors: products that share one softmax, and whose sums with values are added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rewriter.algebra.index import Affine, Atom, Index, resolve
from rewriter.algebra.prims import Softmax
from rewriter.algebra.sizes import ZERO, Size, product
from rewriter.algebra.term import Apply, Read, Term, depends_on, same, source, substitute, unfold
from rewriter.sites.attention import finish
from rewriter.sites.formula import Axes, Operand, Piece
from rewriter.sites.operands import choose_operand
from rewriter.sites.roles import assign_roles
from rewriter.sites.scores import Scores, read_scores
from rewriter.sites.search import Miss, Search
from rewriter.sites.site import AttentionSite
from rewriter.sites.softmaxes import unshifted
from rewriter.sites.sums import as_sum, parts_of
from rewriter.sites.weights import Weights

__all__ = ["build_joined"]


@dataclass(frozen=True)
class _Part:
    """The sum with values over one range of a softmax."""

    weights: Read
    place: Affine
    keys: tuple[Atom, ...]
    scores: Scores
    axes: Axes
    v: Read


def build_joined(search: Search, value: str, output: Index, anchor: Read) -> AttentionSite | Miss | None:
    """Return the site whose result is a sum of sums with values; None if an addition is nothing like it."""
    summands = _summands(unfold(anchor, budget=4))
    if not 2 <= len(summands) <= 8:
        return None
    parts = [_part(search, t, output) for t in summands]
    found = [p for p in parts if isinstance(p, _Part)]
    if len(found) < len(parts):
        return None
    found.sort(key=lambda p: str(p.place.start).rjust(12))
    start = ZERO
    ordered: list[_Part] = []
    while found:
        at = next((p for p in found if p.place.start == start), None)
        if at is None or at.weights.prim is not (ordered or [at])[0].weights.prim:
            return None
        found.remove(at)
        ordered.append(at)
        start = start + _length(at)
    softmax = ordered[0].weights.prim
    assert isinstance(softmax.form, Softmax)
    if start != softmax.shape[softmax.form.axis]:
        return None
    return _merge(search, value, output, ordered, start)


def _summands(term: Term) -> list[Read]:
    match term:
        case Read():
            return [term]
        case Apply("add", (a, b)):
            left, right = _summands(a), _summands(b)
            return left + right if left and right else []
        case _:
            return []


def _length(part: _Part) -> Size:
    return product(a.size for a in part.keys)


def _part(search: Search, at: Read, output: Index) -> _Part | None:
    total = as_sum(at)
    if total is None or len(total.factors) != 2 or total.scale != 1.0:
        return None
    for weights, values in (total.factors, total.factors[::-1]):
        tree = unfold(weights, budget=4) if isinstance(weights, Read) else weights
        v = values if isinstance(values, Read) else getattr(values, "whole", None)
        if isinstance(tree, Read) and isinstance(tree.prim.form, Softmax) and v is not None:
            return _of_softmax(search, tree, tree.prim.form.axis, v, total.bound, output)
    return None


def _of_softmax(
    search: Search, weights: Read, axis: int, v: Read, bound: Sequence[Atom], output: Index
) -> _Part | None:
    in_v = depends_on(unfold(v, budget=32))
    before = unfold(Read(weights.prim.inputs[0], weights.index), budget=64)
    scores, _ = unshifted(before, frozenset(parts_of(bound)))
    found = read_scores(search, scores, bound, in_v)
    place = resolve(weights.index)[axis]
    keys = parts_of(bound)
    if isinstance(found, Miss) or found.product is None or found.matrix is not None:
        return None
    if place.atoms != frozenset(keys) or place.dense() is None:
        return None
    axes = assign_roles(found.product, v, keys, output)
    return None if isinstance(axes, str) else _Part(weights, place, parts_of(keys), found, axes, v)


def _merge(
    search: Search, value: str, output: Index, parts: Sequence[_Part], length: Size
) -> AttentionSite | Miss:
    first = max(parts, key=lambda p: len(p.axes.batch))
    joined = Atom(length, "j")
    axes = replace(_common(parts, first), keys=(joined,))
    names = [_features(p, first) for p in parts]
    if any(n is None or not _alike(p, first, n) for p, n in zip(parts, names, strict=True)):
        return Miss("one softmax runs over several products, which are not made alike", "scores")
    bias, alike = _bias(parts, [n or {} for n in names], joined)
    scores = replace(first.scores, bias=bias)
    if not alike or any(p.scores.whole is not None for p in parts):
        scores = replace(first.scores, whole=_whole(first, joined))
    queries = _common_source([p.scores.product.q for p in (first, *parts) if p.scores.product])
    q = choose_operand(queries, _groups(axes, "q"))
    renamed = [n or {} for n in names]
    k = _pieces(parts, renamed, "k", axes, joined)
    v = _pieces(parts, renamed, "v", axes, joined)
    if isinstance(q, str) or isinstance(k, str) or isinstance(v, str):
        return Miss(next(x for x in (q, k, v) if isinstance(x, str)), "operands")
    weights = Weights(first.weights, first.weights.prim)
    return finish(
        search, value, output, "attention", weights, None, scores, axes, (q[0], k[0], v[0], q[1] * k[1])
    )


def _common(parts: Sequence[_Part], first: _Part) -> Axes:
    """Return the axes of all parts: an axis that the keys of any part have is none of queries alone."""
    heads = tuple(a for a in first.axes.heads if all(a in p.axes.heads for p in parts))
    held = {a for p in parts for a in (*p.axes.batch, *p.axes.heads)} - {*heads}
    order = [*first.axes.batch, *first.axes.heads, *first.axes.queries]
    batch = tuple(a for a in order if a in held)
    queries = tuple(a for a in first.axes.queries if a not in held)
    return replace(first.axes, batch=batch, heads=heads, queries=queries)


def _common_source(reads: Sequence[Read]) -> Read:
    """Return the nearest read behind the first one that is behind all: each may be another view of it."""
    behind = [{at.prim for at in source(x)} for x in reads[1:]]
    return next((at for at in source(reads[0]) if all(at.prim in seen for seen in behind)), reads[0])


def _whole(part: _Part, joined: Atom) -> Term:
    """Return what the softmax is taken of, over the keys of all parts."""
    prim = part.weights.prim
    assert isinstance(prim.form, Softmax)
    index = list(part.weights.index)
    index[prim.form.axis] = Affine.of(joined)
    return unfold(Read(prim.inputs[0], tuple(index)), budget=64)


def _groups(axes: Axes, which: str) -> tuple[tuple[Atom, ...], ...]:
    match which:
        case "q":
            return axes.batch, (*axes.heads, *axes.groups), axes.queries, axes.features
        case "k":
            return axes.batch, axes.heads, axes.keys, axes.features
        case _:
            return axes.batch, axes.heads, axes.keys, axes.v_features


def _features(part: _Part, first: _Part) -> dict[Atom, Affine] | None:
    """Return the names that the first product has for the features of another one."""
    own, wanted = part.axes.features, first.axes.features
    if [a.size for a in own] != [a.size for a in wanted]:
        return None
    return {a: Affine.of(b) for a, b in zip(own, wanted, strict=True)}


def _alike(part: _Part, first: _Part, names: dict[Atom, Affine]) -> bool:
    """Whether two products have the same queries, scale and roles."""
    a, b = part.scores, first.scores
    assert a.product is not None and b.product is not None
    # what is a batch to some of the keys is a query to those that all of the batch shares
    roles = [({*x.batch, *x.heads, *x.queries}, x.groups, x.v_features) for x in (part.axes, first.axes)]
    plain = _same_factors(a.factors, b.factors, frozenset((*part.keys, *first.keys)))
    q = same(unfold(_renamed(a.product.q, names), budget=8), unfold(b.product.q, budget=8))
    return plain and q and roles[0] == roles[1] and (a.scale, a.softcap) == (b.scale, b.softcap)


def _same_factors(
    a: Sequence[tuple[Term, bool]], b: Sequence[tuple[Term, bool]], keys: frozenset[Atom]
) -> bool:
    """Whether products are multiplied and divided by the same tensors, which no keys have."""
    pairs = list(zip(a, b, strict=False))
    alike = all(same(x, y) and divides == other for (x, divides), (y, other) in pairs)
    return len(a) == len(b) and alike and not any(depends_on(x) & keys for x, _ in a)


def _renamed(at: Read, names: dict[Atom, Affine]) -> Read:
    found = substitute(at, names)
    assert isinstance(found, Read)
    return found


def _bias(
    parts: Sequence[_Part], names: Sequence[dict[Atom, Affine]], joined: Atom
) -> tuple[Term | None, bool]:
    """Return what is added over the keys of all parts, and whether it is what each of them adds."""
    over = [_over(p, joined, n) for p, n in zip(parts, names, strict=True)]
    bias = next((b for p, b in zip(parts, over, strict=True) if p.keys), over[0])
    return bias, all(_adds(p, b, bias, joined) for p, b in zip(parts, over, strict=True))


def _adds(part: _Part, own: Term | None, bias: Term | None, joined: Atom) -> bool:
    """Whether a part adds what the bias of all is at its keys."""
    if own is None or bias is None:
        return own is bias
    # a single key has no atom
    return same(own, bias if part.keys else substitute(bias, {joined: part.place}))


def _over(part: _Part, joined: Atom, names: dict[Atom, Affine]) -> Term | None:
    """Return the bias of a part over the keys of all."""
    if part.scores.bias is None or len(part.keys) > 1:
        return part.scores.bias
    shifted = Affine(-part.place.start, ((joined, Size.of(1)),))
    return substitute(part.scores.bias, {**names, **dict.fromkeys(part.keys, shifted)})


def _pieces(
    parts: Sequence[_Part], names: Sequence[dict[Atom, Affine]], which: str, axes: Axes, joined: Atom
) -> tuple[Operand, float] | str:
    """Return keys or values of all parts, and the constant factor that was taken off all of them."""
    scale = 1.0
    for peel in (True, False) if which == "k" else (False,):
        found = [_read_at(p, n, which, axes, peel) for p, n in zip(parts, names, strict=True)]
        refused = next((x for x in found if isinstance(x, str)), None)
        if refused is not None:
            return refused
        read = [x for x in found if not isinstance(x, str)]
        scale = read[0][1]
        if all(x[1] == scale for x in read):
            break
    pieces = tuple(Piece(x, p.keys) for (x, _), p in zip(read, parts, strict=True))
    first = pieces[0].operand
    return Operand(first.value, first.index, pieces, (joined,)), scale


def _read_at(
    part: _Part, names: dict[Atom, Affine], which: str, axes: Axes, peel: bool
) -> tuple[Operand, float] | str:
    assert part.scores.product is not None
    at = substitute(part.scores.product.k if which == "k" else part.v, names)
    assert isinstance(at, Read)
    return choose_operand(at, _groups(replace(axes, keys=part.keys), which), peel)
