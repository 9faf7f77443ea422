"""Which atom is batch, head, query, key or feature: by membership, never by position alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rewriter.algebra.index import Atom, Index, atoms_of, resolve
from rewriter.algebra.sizes import ONE
from rewriter.algebra.term import Read, Term, depends_on, leaves, read, unfold
from rewriter.sites.formula import Axes
from rewriter.sites.scores import Product
from rewriter.sites.sums import parts_of

__all__ = ["assign_roles", "assign_roles_without_product", "beside", "in_order"]


def assign_roles_without_product(scores: Term, v: Read, keys: tuple[Atom, ...], output: Index) -> Axes | str:
    """Sort the atoms of a site whose scores hold no product of queries and keys."""
    keys = parts_of(keys)
    in_v = depends_on(unfold(v, budget=32))
    order = [p for a in in_order(output) for p in a.parts()]
    in_s = depends_on(scores)
    stray = (in_s | in_v) - frozenset(order) - frozenset(keys)
    if stray:
        return f"an axis of size {min(str(a.size) for a in stray)} is neither summed nor kept"
    if any(a not in in_v for a in keys):
        return "the values do not depend on the axis that is summed with them"
    lost = [a for a in order if a not in in_s and a not in in_v]
    if lost:
        return f"an axis of size {lost[0].size} of the output is in neither weights nor values"
    shared = [a for a in order if a in in_s and a in in_v]
    queries = tuple(a for a in order if a in in_s and a not in in_v)
    v_features = tuple(a for a in order if a in in_v and a not in in_s)
    near = beside(v_features, (v,))
    heads = tuple(a for a in shared if a in near)
    batch = tuple(a for a in shared if a not in near)
    return Axes(batch, heads, (), queries, keys, (), v_features)


def assign_roles(product: Product, v: Read, keys: tuple[Atom, ...], output: Index) -> Axes | str:
    """Sort the atoms of a site by role, or say which atom fits none."""
    order = in_order(output)
    q_term, k_term, v_term = (unfold(x, budget=32) for x in (product.q, product.k, v))
    in_q, in_k, in_v = (depends_on(t) for t in (q_term, k_term, v_term))
    keys = parts_of(keys)
    features = parts_of(product.features)
    order = [p for a in order for p in a.parts()]
    known = frozenset(order) | frozenset(keys)
    stray = (in_q | in_k | in_v) - known - frozenset(features)
    if stray:
        return f"an axis of size {min(str(a.size) for a in stray)} is neither summed nor kept"
    if any(a not in in_v for a in keys):
        return "the values do not depend on the axis that is summed with them"
    v_features = tuple(a for a in order if a in in_v and a not in in_k and a not in in_q)
    shared = [a for a in order if a not in v_features and (a in in_k or a in in_v)]
    own = [a for a in order if a in in_q and a not in in_k and a not in in_v]
    lost = [a for a in order if a not in v_features and a not in shared and a not in own]
    if lost:
        return f"an axis of size {lost[0].size} of the output is in none of queries, keys and values"
    if any(a in in_k and a in in_q and a not in in_v for a in shared) and not v_features:
        return "the output has no axis that comes from the values alone"
    sides = (features, product.q), (features, product.k), (v_features, v)
    near = _nearest(beside(f, (x,)) & {*shared, *own} for f, x in sides)
    expanded = (atoms_of(product.k.index) | atoms_of(v.index)) - in_k - in_v
    if not near:
        near = _by_position(product, shared)
    heads = tuple(a for a in shared if a in near)
    tied = near | _together(frozenset(heads), (product.q,)) | expanded
    groups = tuple(a for a in own if a in tied)
    queries = tuple(a for a in own if a not in tied)
    if not queries and groups and not expanded:
        queries, groups = groups, ()
    if not heads and not groups and len(queries) > 1:
        groups = tuple(a for a in queries if a in _on_head_axis(product.q))
        queries = tuple(a for a in queries if a not in groups)
    batch = tuple(a for a in shared if a not in heads)
    return Axes(batch, heads, groups, queries, keys, features, v_features)


def in_order(index: Index) -> list[Atom]:
    """Return the atoms of an index, axis by axis, slow to fast."""
    order: list[Atom] = []
    for dim in resolve(index):
        for atom, _ in sorted(dim.terms, key=lambda t: _rank(t[1]), reverse=True):
            order.append(atom)
    return order


def _rank(stride: object) -> tuple[int, str]:
    text = str(stride)
    return (int(text), "") if text.isdigit() else (1 << 62, text)


def _ends(reads: Iterable[Read]) -> list[Read]:
    found = [t for at in reads for t in leaves(unfold(at, budget=32)) if isinstance(t, Read)]
    return [read(t.prim, t.index) for t in found]


def beside(features: Iterable[Atom], reads: Iterable[Read]) -> frozenset[Atom]:
    """Return atoms that share an axis of a source tensor with a feature: heads of a projection."""
    wanted = frozenset(features)
    found: set[Atom] = set()
    for end in _ends(reads):
        for dim in resolve(end.index):
            if dim.atoms & wanted:
                found |= dim.atoms - wanted
    return frozenset(found)


def _nearest(found: Iterable[frozenset[Atom]]) -> frozenset[Atom]:
    """Return the atoms that share an axis with features in most of the operands, if any do."""
    count = Counter(a for atoms in found for a in atoms)
    most = max(count.values(), default=0)
    return frozenset(a for a, times in count.items() if times == most)


def _together(heads: frozenset[Atom], reads: Iterable[Read]) -> frozenset[Atom]:
    found: set[Atom] = set()
    for end in _ends(reads):
        for dim in resolve(end.index):
            if dim.atoms & heads:
                found |= dim.atoms
    return frozenset(found)


def _on_head_axis(q: Read) -> frozenset[Atom]:
    """Return the atoms on the second axis of queries of rank 4 or more, where one head of keys serves all."""
    index = resolve((_ends([q]) or [q])[0].index)
    return index[1].atoms if len(index) >= 4 else frozenset()


def _by_position(product: Product, shared: list[Atom]) -> frozenset[Atom]:
    """Return head atoms of operands without a projection: on any but the leading axis of rank >= 4."""
    found: set[Atom] = set()
    for at in (product.q, product.k):
        ends = _ends([at]) or [at]
        rank = len(ends[0].index)
        if rank >= 4:
            for k, dim in enumerate(resolve(ends[0].index)):
                if k > 0 and ends[0].prim.shape[k] != ONE:
                    found |= dim.atoms & frozenset(shared)
    return frozenset(found)
