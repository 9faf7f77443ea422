"""Indices, and how they are pulled back through views.

An *atom* is a named axis: an integer that runs from 0 to its size. An index along one axis of a tensor
is *affine*: ``start + sum(stride * atom)``. Every view maps an index on its result to an index on its
operand; a reshape that cuts an axis splits its atom into two, everywhere at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any, NamedTuple

from rewriter.algebra.prims import (
    Concat,
    Constant,
    Einsum,
    Expand,
    Gather,
    Iota,
    Map,
    Permute,
    Prim,
    Reshape,
    Slice,
)
from rewriter.algebra.sizes import ONE, ZERO, Size, SizeLike, product

__all__ = [
    "Affine",
    "Atom",
    "Index",
    "affine_value",
    "aligned",
    "atoms_of",
    "einsum_index",
    "fresh",
    "operand_index",
    "pull",
    "resolve",
]

_serial = count()
_IDENTITY = Map("identity")


class Atom:
    """A named axis with a size. Compared by identity; ``kids`` are set when a reshape has cut it in two."""

    __slots__ = ("_name", "kids", "serial", "size")

    cuts = 0
    """How many atoms have been cut so far: what was computed since the last cut is up to date."""

    def __init__(self, size: SizeLike, name: str = "") -> None:
        self.size = Size.of(size)
        self.serial = next(_serial)
        self._name = name
        self.kids: tuple[Atom, Atom] | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return self._name or f"a{self.serial}"

    def split(self, low: Size) -> bool:
        """Cut into ``(high, low)`` with ``low`` entries in the fast part; False if that is not exact."""
        high = self.size.divide(low)
        if high is None:
            return False
        Atom.cuts += 1
        self.kids = (Atom(high, self.name + "h"), Atom(low, self.name + "l"))
        return True

    def parts(self) -> tuple[Atom, ...]:
        """Return the atoms it now consists of, slow to fast; axes of size 1 are nothing."""
        if self.kids is not None:
            return self.kids[0].parts() + self.kids[1].parts()
        return () if self.size == ONE else (self,)

    def __repr__(self) -> str:
        return f"{self.name}<{self.size}>"


def aligned(left: Sequence[Atom], right: Sequence[Atom]) -> bool:
    """Cut atoms, slow to fast, until both sides have the same sizes; False where no cut does that.

    >>> flat, two = Atom(12), (Atom(3), Atom(4))
    >>> aligned((flat,), two), [str(part.size) for part in flat.parts()]
    (True, ['3', '4'])
    >>> aligned((Atom(4), Atom(6)), (Atom(6), Atom(4)))
    False
    """
    a, b = ([part for atom in side for part in atom.parts()] for side in (left, right))
    if product(x.size for x in a) != product(x.size for x in b):
        return False
    while a and b:
        x, y = a.pop(), b.pop()
        if x.size == y.size:
            continue
        for atom, low, rest in ((x, y, a), (y, x, b)):
            if atom.size.divide(low.size) is not None and atom.split(low.size):
                rest += atom.kids[:1] if atom.kids else ()
                break
        else:
            return False
    return not a and not b


class Affine(NamedTuple):
    """``start + sum(stride * atom)``, atoms by serial number, each once."""

    start: Size
    terms: tuple[tuple[Atom, Size], ...] = ()

    @staticmethod
    def of(atom: Atom) -> Affine:
        """Return the atom itself."""
        return Affine(ZERO, ((atom, ONE),))

    def times(self, factor: Size) -> Affine:
        """Return the multiple."""
        if factor == ONE:
            return self
        return Affine(self.start * factor, tuple((a, s * factor) for a, s in self.terms))

    def plus(self, other: Affine) -> Affine:
        """Return the sum."""
        if not other.terms:
            return Affine(self.start + other.start, self.terms)
        return _affine(self.start + other.start, [*self.terms, *other.terms])

    def minus(self, other: Affine) -> Affine:
        """Return the difference."""
        return self.plus(other.times(Size.of(-1)))

    @property
    def atoms(self) -> frozenset[Atom]:
        """The atoms it depends on."""
        return frozenset(dict(self.terms))

    def highest(self) -> Size:
        """Return the largest value, for strides that are not negative."""
        return self.start + sum((s * (a.size - 1) for a, s in self.terms), ZERO)

    def dense(self) -> tuple[tuple[Atom, ...], Size] | None:
        """Return the atoms slow to fast and the step, if the values are an arithmetic progression."""
        if not self.terms:
            return (), ONE
        if len(self.terms) == 1:
            return self.terms[0][:1], self.terms[0][1]
        left = dict(self.terms)
        order: list[Atom] = []
        step = next((s for s in left.values() if all(t.divide(s) is not None for t in left.values())), None)
        if step is None:
            return None
        stride = step
        while left:
            atom = next((a for a, s in left.items() if s == stride), None)
            if atom is None:
                return None
            del left[atom]
            order.insert(0, atom)
            stride = stride * atom.size
        return tuple(order), step

    def __str__(self) -> str:
        parts = [f"{s}*{a.name}" if s != ONE else a.name for a, s in self.terms]
        return " + ".join(parts + ([str(self.start)] if self.start != ZERO or not parts else []))


Index = tuple[Affine, ...]
"""One affine form per axis of a tensor."""


def _affine(start: Size, terms: Iterable[tuple[Atom, Size]]) -> Affine:
    total: dict[Atom, Size] = {}
    for atom, stride in terms:
        if atom.kids is not None:
            high, low = atom.kids
            pieces = _affine(ZERO, [(high, stride * low.size), (low, stride)]).terms
        else:
            pieces = ((atom, stride),) if atom.size is not ONE else ()
        for piece, s in pieces:
            total[piece] = total[piece] + s if piece in total else s
    kept = [(a, s) for a, s in total.items() if s is not ZERO]
    if len(kept) > 1:
        kept.sort(key=_serial_of)
    return Affine(start, tuple(kept))


def _serial_of(term: tuple[Atom, Size]) -> int:
    return term[0].serial


def resolve(index: Index) -> Index:
    """Return the index in terms of the atoms as they are now split."""
    for dim in index:
        for atom, _ in dim.terms:
            if atom.kids is not None:
                return tuple(_affine(d.start, d.terms) for d in index)
    return index


def fresh(shape: Sequence[Size], name: str = "") -> Index:
    """Return one new atom per axis; an axis of size 1 has the index 0."""
    return tuple(
        Affine(ZERO) if n == ONE else Affine.of(Atom(n, f"{name}{k}" if name else ""))
        for k, n in enumerate(shape)
    )


def atoms_of(index: Index) -> frozenset[Atom]:
    """Return the atoms an index depends on."""
    return frozenset(a for dim in resolve(index) for a, _ in dim.terms)


Pulled = tuple[Prim, Index] | None


def pull(prim: Prim, index: Index) -> Pulled:
    """Return the operand and the index that one view step reads, or None.

    None means that ``prim`` is not a view, or that the index cannot be followed (a reshape whose cuts do
    not line up, a range that straddles a concatenation): the tensor is then read as it is.
    """
    step = _STEPS.get(type(prim.form))
    return None if step is None else step(prim, prim.form, resolve(index))


def _through_permute(prim: Prim, form: Permute, index: Index) -> Pulled:
    source = list(index)
    for k, dim in zip(form.order, index, strict=True):
        source[k] = dim
    return prim.inputs[0], tuple(source)


def _through_expand(prim: Prim, form: Expand, index: Index) -> Pulled:
    return prim.inputs[0], operand_index(prim.inputs[0].shape, prim.shape, index)


def _through_slice(prim: Prim, form: Slice, index: Index) -> tuple[Prim, Index]:
    axis = form.axis
    dim = index[axis].times(Size.of(form.step))
    moved = Affine(dim.start + form.start, dim.terms)
    return prim.inputs[0], (*index[:axis], moved, *index[axis + 1 :])


def _through_reshape(prim: Prim, form: Reshape, index: Index) -> Pulled:
    pulled = _regrouped(prim.inputs[0].shape, prim.shape, index)
    return None if pulled is None else (prim.inputs[0], resolve(pulled))


def _through_gather(prim: Prim, form: Gather, index: Index) -> Pulled:
    (data, indices), axis = prim.inputs, form.axis
    rank = len(indices.shape)
    at = affine_value(indices, index[axis : axis + rank])
    return None if at is None else (data, (*index[:axis], at, *index[axis + rank :]))


def operand_index(shape: Sequence[Size], result: Sequence[Size], index: Index) -> Index:
    """Return the index on an operand of ``shape`` that was broadcast to ``result``."""
    offset = len(result) - len(shape)
    return tuple(
        Affine(ZERO) if n == ONE and result[k + offset] != ONE else index[k + offset]
        for k, n in enumerate(shape)
    )


def affine_value(prim: Prim, index: Index) -> Affine | None:
    """Return the value of an integer tensor at an index as an affine form, if it is one."""
    for _ in range(64):
        match prim.form:
            case Iota(start, step):
                dim = resolve(index)[0].times(step)
                return Affine(dim.start + start, dim.terms)
            case Constant(load) if product(prim.shape) == ONE and (prim.dtype or "").startswith(
                ("int", "uint")
            ):
                return Affine(Size.of(int(load().reshape(()))))
            case Map(fn) if fn in ("cast", "identity") and (prim.dtype or "").startswith(("int", "uint")):
                operand = prim.inputs[0]
                prim, index = operand, operand_index(operand.shape, prim.shape, index)
            case Map(fn) if fn in ("add", "sub"):
                sides = [affine_value(x, operand_index(x.shape, prim.shape, index)) for x in prim.inputs]
                if sides[0] is None or sides[1] is None:
                    return None
                return sides[0].plus(sides[1]) if fn == "add" else sides[0].minus(sides[1])
            case _:
                step_ = pull(prim, index)
                if step_ is None:
                    return None
                prim, index = step_
    return None


def einsum_index(
    form: Einsum, shape: Sequence[Size], index: Index, operands: Sequence[Prim]
) -> tuple[list[Index], list[Atom]]:
    """Return the index on each operand of a sum of products, and the fresh atoms it sums over."""
    by_label: dict[int, Affine] = dict(zip(form.output, index, strict=True))
    sizes: dict[int, Size] = {}
    for labels, x in zip(form.operands, operands, strict=True):
        for label, n in zip(labels, x.shape, strict=True):
            if sizes.get(label, ONE) == ONE:
                sizes[label] = n
    bound: list[Atom] = []
    for label, n in sizes.items():
        if label not in by_label:
            if n == ONE:
                by_label[label] = Affine(ZERO)
            else:
                bound.append(Atom(n))
                by_label[label] = Affine.of(bound[-1])
    indices = [
        tuple(
            Affine(ZERO) if n == ONE and sizes[label] != ONE else by_label[label]
            for label, n in zip(labels, x.shape, strict=True)
        )
        for labels, x in zip(form.operands, operands, strict=True)
    ]
    return indices, bound


def _through_concat(prim: Prim, form: Concat, index: Index) -> Pulled:
    axis, start = form.axis, ZERO
    dim = index[axis]
    if any(not s.at_least(1) for _, s in dim.terms):
        return None
    for x in prim.inputs:
        end = start + x.shape[axis]
        if (dim.start - start).at_least(0) and (end - 1 - dim.highest()).at_least(0):
            return x, (*index[:axis], Affine(dim.start - start, dim.terms), *index[axis + 1 :])
        start = end
    return _through_parts(prim, axis, index)


def _through_parts(prim: Prim, axis: int, index: Index) -> Pulled:
    """Follow a range across parts that are all cut from one tensor, each from where it stands again."""
    found: Pulled = None
    start = ZERO
    for x in prim.inputs:
        dim = Affine(index[axis].start - start, index[axis].terms)
        source = _before_cuts(x, (*index[:axis], dim, *index[axis + 1 :]))
        if found is not None and (source[0] is not found[0] or source[1] != found[1]):
            return None
        found, start = source, start + x.shape[axis]
    return found


def _before_cuts(prim: Prim, index: Index) -> tuple[Prim, Index]:
    while isinstance(prim.form, Slice) or prim.form == _IDENTITY:
        if isinstance(prim.form, Slice):
            prim, index = _through_slice(prim, prim.form, index)
        else:
            prim = prim.inputs[0]
    return prim, index


def _regrouped(old: Sequence[Size], new: Sequence[Size], index: Index) -> Index | None:
    """Return the index on the operand (shape ``old``) of a row-major regrouping to ``new``."""
    result: dict[int, Affine] = {k: Affine(ZERO) for k, n in enumerate(old) if n == ONE}
    sources = [k for k, n in enumerate(old) if n != ONE]
    targets = [k for k, n in enumerate(new) if n != ONE]
    while sources and targets and old[sources[0]] == new[targets[0]]:
        result[sources.pop(0)] = index[targets.pop(0)]
    while sources and targets and old[sources[-1]] == new[targets[-1]]:
        result[sources.pop()] = index[targets.pop()]
    flat, stride = Affine(ZERO), ONE
    for k in reversed(targets):
        flat, stride = flat.plus(index[k].times(stride)), stride * new[k]
    for k in reversed(sources[1:]):
        cut = _divmod(flat, old[k])
        if cut is None:
            return None
        flat, result[k] = cut
    if sources:
        result[sources[0]] = flat
    elif flat.terms or flat.start != ZERO:
        return None
    return tuple(result[k] for k in range(len(old)))


def _divmod(flat: Affine, n: Size) -> tuple[Affine, Affine] | None:
    """Return ``(flat // n, flat % n)`` as affine forms, splitting an atom if one straddles the cut."""
    start = _divmod_start(flat.start, n)
    if start is None:
        return None
    for _ in range(8):
        flat = _affine(flat.start, flat.terms)
        quotients = [(a, s, s.divide(n)) for a, s in flat.terms]
        high = tuple((a, q) for a, _, q in quotients if q is not None)
        low = tuple((a, s) for a, s, q in quotients if q is None)
        rest = Affine(start[1], low)
        if all(s.at_least(1) for _, s in low) and (n - 1 - rest.highest()).at_least(0):
            return Affine(start[0], high), rest
        if not any(_cut(atom, stride, n) for atom, stride in low):
            return None
    return None


def _cut(atom: Atom, stride: Size, n: Size) -> bool:
    count_ = n.divide(stride)
    if count_ is None or (count_ - atom.size).at_least(0):
        return False
    return atom.split(count_)


def _divmod_start(start: Size, n: Size) -> tuple[Size, Size] | None:
    if start.static and n.static:
        high, low = divmod(int(start), int(n))
        return Size.of(high), Size.of(low)
    quotient = start.divide(n)
    if quotient is not None:
        return quotient, ZERO
    if start.at_least(0) and (n - 1 - start).at_least(0):
        return ZERO, start
    return None


_STEPS: dict[type, Callable[[Prim, Any, Index], Pulled]] = {
    Permute: _through_permute,
    Expand: _through_expand,
    Slice: _through_slice,
    Reshape: _through_reshape,
    Concat: _through_concat,
    Gather: _through_gather,
}
"""How an index goes through a view, by its form."""
