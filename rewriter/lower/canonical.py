"""From a site to a form's operands and back: canonical layout in, the graph's own layout out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewriter.algebra.index import Affine, Atom, Index, resolve
from rewriter.algebra.sizes import ONE, Size, product
from rewriter.algebra.term import Apply, Number, Position, Read, Term
from rewriter.forms import Canonical
from rewriter.lower.emitter import Emitter, EmptyRow, Handle
from rewriter.lower.errors import EmitError
from rewriter.program.program import Build, Replacement
from rewriter.sites.formula import Axes, Formula, Operand
from rewriter.sites.operands import native_reads
from rewriter.sites.site import AttentionSite

__all__ = ["arrange_operand", "emit_site", "emit_term", "inputs_of", "laid_out", "replacement", "restore"]

Compute = Callable[[Emitter, Canonical], Handle]


def inputs_of(site: AttentionSite) -> tuple[str, ...]:
    """Return the values that a rewritten site reads: `AttentionSite.inputs` less what is proved away."""
    formula = site.formula
    terms = [*(t for t, _ in formula.factors), *(t for t in (formula.rest, formula.sink) if t is not None)]
    names = [r.prim.value for t in terms for r in native_reads(t)]
    return tuple(dict.fromkeys([*(x.value for x in formula.operands), *(n for n in names if n)]))


def replacement(site: AttentionSite, compute: Compute, metadata: Mapping[str, str]) -> Replacement:
    """Return the edit that computes a site with ``compute``."""
    names = inputs_of(site)

    def build(e: Emitter, handles: Sequence[Any]) -> Handle:
        return emit_site(site, e, dict(zip(names, handles, strict=True)), compute)

    checked: Build = build
    return Replacement(site.output, names, checked, site.id.replace(".", "_").replace("-", "_"), metadata)


def emit_site(site: AttentionSite, e: Emitter, handles: Mapping[str, Handle], compute: Compute) -> Handle:
    """Emit the whole site: operands into canonical layout, ``compute``, the result into its own layout."""
    formula, axes = site.formula, site.formula.axes
    if formula.q is None or formula.k is None:
        raise EmitError(f"{site.id}: the scores are no product of queries and keys")
    if formula.scores is not None or formula.weights is not None:
        raise EmitError(f"{site.id}: its scores or weights are another function than softmax attention")
    dtype = site.dtype
    batch, heads = axes.batch, (*axes.heads, *axes.groups)
    q = arrange_operand(e, handles, formula.q, (batch, heads, axes.queries, axes.features), dtype)
    k = arrange_operand(e, handles, formula.k, (batch, axes.heads, axes.keys, axes.features), dtype)
    v = arrange_operand(e, handles, formula.v, (batch, axes.heads, axes.keys, axes.v_features), dtype)
    for factor, divides in formula.factors:
        scaled = emit_term(e, handles, factor, (batch, heads, axes.queries, ()), dtype)
        q = e.map("div" if divides else "mul", q, scaled)
    q, k, v = (
        _broadcast(e, q, axes, heads),
        _broadcast(e, k, axes, axes.heads),
        _broadcast(e, v, axes, axes.heads),
    )
    bias = _logits(e, handles, formula.rest, (batch, heads, axes.queries, axes.keys), dtype)
    sink = _logits(e, handles, formula.sink, (batch, heads, axes.queries, ()), dtype)
    result = compute(
        e,
        Canonical(
            q=q,
            k=k,
            v=v,
            bias=bias,
            band=site.facts.band if formula.split else None,
            implied=None if formula.split else site.facts.band,
            scale=formula.scale,
            empty_row=_guard(site),
            shape=dict(zip("BHGIJDE", _shape(axes), strict=True)),
            softcap=formula.softcap,
            sink=sink,
            normalizer=site.normalizer,
            shift=formula.shift,
        ),
    )
    return restore(e, result, formula, (*batch, *heads, *axes.queries, *axes.v_features))


def _guard(site: AttentionSite) -> EmptyRow:
    """Return what a form must do about rows that see no key.

    ``uniform`` and ``unmasked`` need nothing: the bias itself is finite and makes them. A sink is always
    seen.
    """
    if site.formula.sink is not None:
        return "never"
    match site.empty_row:
        case "nan" | "zero":
            return site.empty_row
        case _:
            return "never"


def _shape(axes: Axes) -> tuple[Size, ...]:
    return (
        axes.size("batch"),
        axes.size("heads", "groups"),
        axes.size("heads"),
        axes.size("queries"),
        axes.size("keys"),
        axes.size("features"),
        axes.size("v_features"),
    )


def arrange_operand(
    e: Emitter, handles: Mapping[str, Handle], operand: Operand, groups: Sequence[Sequence[Atom]], dtype: str
) -> Handle:
    """Bring an operand to one axis per group, in the site's dtype; pieces are joined along the keys."""
    if operand.pieces:
        keys = next(k for k, group in enumerate(groups) if any(a in group for a in operand.joined))
        parts = []
        for piece in operand.pieces:
            own = [piece.keys if k == keys else group for k, group in enumerate(groups)]
            part = arrange_operand(e, handles, piece.operand, own, dtype)
            wanted = tuple(product(a.size for a in group) for group in own)
            parts.append(part if tuple(e.shape(part)) == wanted else e.expand(part, wanted))
        return e.concat(parts, keys)
    x = _arrange(e, handles[operand.value], operand.index, groups)
    return x if e.dtype(x) == dtype else e.map("cast", x, dtype=dtype)


def _broadcast(e: Emitter, x: Handle, axes: Axes, heads: Sequence[Atom]) -> Handle:
    """Give a tensor that is shared by the batch or by heads its batch and head axes."""
    shape = e.shape(x)
    wanted = (axes.size("batch"), product(a.size for a in heads), *shape[2:])
    return x if tuple(shape) == wanted else e.expand(x, wanted)


def _arrange(e: Emitter, x: Handle, index: Index, groups: Sequence[Sequence[Atom]]) -> Handle:
    """Read a tensor at an index and bring it to one axis per group, of size 1 where it has no atom."""
    order: list[Atom] = []
    dropped = 0
    for place, dim in enumerate(index):
        axis = place - dropped
        progression = dim.dense()
        if progression is None:
            raise EmitError(f"axis {place} is read at {dim}, which is no arithmetic progression")
        atoms, step = progression
        size = product(a.size for a in atoms)
        if not atoms and dim.start.static and e.shape(x)[axis] != ONE:
            x = e.select(x, axis, int(dim.start))
            dropped += 1
        elif e.shape(x)[axis] != size or dim.start.terms:
            x = _taken(e, x, axis, dim.start, size, int(step))
        order.extend(atoms)
    shape = [product(a.size for a in g) if any(a in order for a in g) else ONE for g in groups]
    wanted = [a for g in groups for a in g if a in order]
    partial = [g for g in groups if any(a in order for a in g) and not all(a in order for a in g)]
    if wanted == order and not partial:
        return x if tuple(e.shape(x)) == tuple(shape) else e.reshape(x, shape)
    sizes = [a.size for a in order]
    if tuple(e.shape(x)) != tuple(sizes):
        x = e.reshape(x, sizes)
    if wanted != order:
        x = e.permute(x, [order.index(a) for a in wanted])
    if partial:
        spread = [a for g in groups for a in g if a in order or g in partial]
        x = e.reshape(x, [a.size if a in order else ONE for a in spread])
        x = e.expand(x, [a.size for a in spread])
    return x if tuple(e.shape(x)) == tuple(shape) else e.reshape(x, shape)


def _taken(e: Emitter, x: Handle, axis: int, start: Size, size: Size, step: int) -> Handle:
    """Take a progression from one axis; one that goes down is taken upwards and turned around."""
    if step > 0:
        return e.slice(x, axis, start, size, step)
    upwards = e.slice(x, axis, start + (size - 1) * step, size, -step)
    return e.gather(upwards, e.map("sub", e.size(size - 1), e.iota(size)), axis)


def restore(e: Emitter, x: Handle, formula: Formula, order: Sequence[Atom]) -> Handle:
    """Bring ``[B, H, I, E]`` to the layout of the native result."""
    return laid_out(e, x, order, formula.output_index, formula.output_shape)


def laid_out(e: Emitter, x: Handle, order: Sequence[Atom], index: Index, shape: Sequence[Size]) -> Handle:
    """Bring a result whose axes are atoms in some order, grouped in any way, to an index and a shape."""
    wanted: list[Atom] = []
    for dim in index:
        progression = dim.dense()
        if progression is None or dim.start.terms:
            raise EmitError(f"the result is written at {dim}, which is not a whole axis")
        wanted.extend(progression[0])
    if tuple(wanted) != tuple(order):
        x = e.reshape(x, [a.size for a in order])
        x = e.permute(x, [list(order).index(a) for a in wanted])
    return x if tuple(e.shape(x)) == tuple(shape) else e.reshape(x, shape)


def _logits(
    e: Emitter,
    handles: Mapping[str, Handle],
    term: Term | None,
    groups: Sequence[Sequence[Atom]],
    dtype: str,
) -> Handle | None:
    """Emit what joins the scores, with one axis per group, of size 1 where it does not depend on it."""
    if term is None:
        return None
    x = emit_term(e, handles, term, groups, dtype)
    return x if e.shape(x) else e.reshape(x, (ONE,) * len(groups))


def emit_term(
    e: Emitter, handles: Mapping[str, Handle], term: Term, groups: Sequence[Sequence[Atom]], dtype: str
) -> Handle:
    """Emit a term over groups of atoms, in floating point."""

    def walk(at: Term) -> Handle:
        match at:
            case Number(value):
                return e.constant(value, dtype)
            case Position(value):
                return _positions(e, resolve((value,))[0], groups)
            case Read(prim, index):
                return _read(prim.value, index)
            case Apply(fn, args, own, whole):
                if whole is not None and whole.prim.value is not None:
                    return _read(whole.prim.value, whole.index)
                if fn == "cast":
                    return e.map("cast", walk(args[0]), dtype=own or dtype)
                return _apply(e, fn, [walk(a) for a in args], dtype)
            case _:
                raise EmitError(f"cannot emit {at}")

    def _read(name: str | None, index: Index) -> Handle:
        if name is None or name not in handles:
            raise EmitError("a part of the bias is held by no tensor of the graph")
        kept = frozenset(a for g in groups for a in g)
        fixed = tuple(Affine(d.start, tuple((a, s) for a, s in d.terms if a in kept)) for d in resolve(index))
        return _arrange(e, handles[name], fixed, groups)

    result = walk(term)
    return result if e.dtype(result) == dtype else e.map("cast", result, dtype=dtype)


def _apply(e: Emitter, fn: str, args: list[Handle], dtype: str) -> Handle:
    """Emit one pointwise function; numbers and integers join floating-point operands in ``dtype``."""
    if fn in ("and", "or", "not", "xor"):
        return e.map(fn, *(a if e.dtype(a) == "bool" else e.map("cast", a, dtype="bool") for a in args))
    if fn in ("eq", "ne", "lt", "le", "gt", "ge") and len({e.dtype(a) for a in args}) == 1:
        return e.map(fn, *args)
    head, tail = (args[:1], args[1:]) if fn == "where" else ([], args)
    tail = [a if e.dtype(a) == dtype else e.map("cast", a, dtype=dtype) for a in tail]
    head = [a if e.dtype(a) == "bool" else e.map("cast", a, dtype="bool") for a in head]
    return e.map(fn, *head, *tail)


def _positions(e: Emitter, value: Affine, groups: Sequence[Sequence[Atom]]) -> Handle:
    total = e.constant(0, "int64")
    if value.start.terms:
        total = e.map("add", total, e.size(value.start))
    flat = [a for g in groups for a in g]
    for atom, stride in value.terms:
        steps = e.map("mul", e.iota(atom.size), e.size(stride))
        steps = _arrange(e, steps, (Affine.of(atom),), groups)
        total = e.map("add", total, steps)
        if atom not in flat:
            raise EmitError("a position runs over an axis that the result does not have")
    return total
