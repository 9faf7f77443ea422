"""Terms: what a tensor holds at an index, written over atoms.

`unfold` looks through views and pointwise maps and stops at everything else (a contraction, a
normaliser, a leaf), so a term is a small tree of functions whose leaves are *reads*.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewriter.algebra.index import (
    Affine,
    Atom,
    Index,
    affine_value,
    atoms_of,
    operand_index,
    pull,
    resolve,
)
from rewriter.algebra.prims import Concat, Constant, Expand, Gather, Iota, Map, Permute, Prim, Reshape, Slice
from rewriter.algebra.sizes import ONE, product

__all__ = [
    "Apply",
    "Number",
    "Position",
    "Read",
    "Term",
    "VIEWS",
    "depends_on",
    "leaves",
    "origin",
    "outermost",
    "read",
    "same",
    "source",
    "substitute",
    "unfold",
]

_CAST = Map("cast")

VIEWS = (Reshape, Permute, Expand, Slice, Concat, Gather)


class Read:
    """A tensor at an index."""

    __slots__ = ("_unfolded", "index", "opened", "prim")
    __match_args__ = ("prim", "index")

    def __init__(self, prim: Prim, index: Index) -> None:
        self.prim = prim
        self.index = index
        self._unfolded: tuple[int, int, float, Term] | None = None
        self.opened: tuple[int, Term, dict[Any, Any]] | None = None
        """When `rewriter.rules.cuts` opened it (by `Atom.cuts`), what it found, which products it is."""

    def __repr__(self) -> str:
        return f"Read({self.prim}, {self.index})"

    def unfolded(self, budget: int) -> Term:
        """Return the term, kept until an atom is cut or a budget is asked for that may give another."""
        known = self._unfolded
        if known is None or known[0] != Atom.cuts or not known[1] <= budget <= known[2]:
            cuts, left = Atom.cuts, [budget]
            term = _unfold(self, left, None, 0)
            least, most = (budget - left[0], math.inf) if left[0] else (budget, budget)
            known = self._unfolded = cuts, least, most, term
        return known[3]

    @property
    def atoms(self) -> frozenset[Atom]:
        """The atoms the index depends on."""
        return atoms_of(self.index)


@dataclass(frozen=True, slots=True)
class Number:
    """A known scalar."""

    value: float


@dataclass(frozen=True, slots=True, eq=False)
class Position:
    """An integer that is an affine form of the atoms: what an iota holds."""

    value: Affine


@dataclass(frozen=True, slots=True, eq=False)
class Apply:
    """A pointwise function of terms. ``whole`` is the tensor that holds the result, where there is one."""

    fn: str
    args: tuple[Term, ...]
    dtype: str | None
    whole: Read | None = None


Term = Read | Number | Position | Apply


def read(prim: Prim, index: Index) -> Read:
    """Return the read after all leading view steps."""
    for step in _views(Read(prim, index)):
        last = step
    return last


def _views(start: Read) -> Iterator[Read]:
    yield start
    at: tuple[Prim, Index] | None = (start.prim, start.index)
    while at is not None:
        at = pull(*at)
        if at is not None:
            yield Read(*at)


def source(start: Read) -> Iterator[Read]:
    """Yield ``start`` and every read behind it through views, copies and casts, nearest first."""
    first = start
    while True:
        for at in _views(first):
            yield at
        if not (isinstance(at.prim.form, Map) and at.prim.form.fn in ("identity", "cast")):
            return
        operand = at.prim.inputs[0]
        first = Read(operand, operand_index(operand.shape, at.prim.shape, resolve(at.index)))


def unfold(start: Read, budget: int = 256, stop: Callable[[Prim], bool] | None = None) -> Term:
    """Return the term of a read, looking through views and maps.

    Parameters
    ----------
    budget
        How many maps may be looked into; past that the tensors are read as they are.
    stop
        Tensors that are not looked into.
    """
    return start.unfolded(budget) if stop is None else _unfold(start, [budget], stop, 0)


def _unfold(start: Read, left: list[int], stop: Callable[[Prim], bool] | None, depth: int) -> Term:
    at = read(start.prim, start.index)
    prim = at.prim
    if stop is not None and stop(prim):
        return at
    match prim.form:
        case Constant(load) if product(prim.shape) == ONE:
            return Number(float(np.asarray(load()).reshape(()).astype(np.float64)))
        case Iota():
            value = None if prim.dtype in _NARROW else affine_value(prim, at.index)
            return at if value is None else Position(value)
        case Map(fn) if left[0] > 0 and depth < 200:
            left[0] -= 1
            index = resolve(at.index)
            args = tuple(
                _unfold(Read(x, operand_index(x.shape, prim.shape, index)), left, stop, depth + 1)
                for x in prim.inputs
            )
            if fn == "cast" and _narrows(prim, args[0]):
                return at
            if fn in ("identity", "cast") and not _changes_value(prim):
                return args[0]
            return Apply(fn, args, prim.dtype, _readable(start, at))
        case _:
            return _readable(start, at)


def origin(start: Read) -> Read:
    """Return the read behind views, copies and casts that keep the value."""
    return _origin(start)[1]


def outermost(start: Read) -> Term:
    """Return the term of a read one operator deep, behind views, copies and casts that keep the value.

    Operands are read as the graph names them: what is behind their views is not looked at.
    """
    at, end = _origin(start)
    prim = end.prim
    if isinstance(prim.form, Constant | Iota):
        return _unfold(end, [0], None, 0)
    if not isinstance(prim.form, Map):
        return _readable(at, end)
    if _wraps(prim):
        term = _unfold(end, [1], None, 0)
        return outermost(term) if isinstance(term, Read) and term.prim is not prim else term
    index = resolve(end.index)
    operands = tuple(Read(x, operand_index(x.shape, prim.shape, index)) for x in prim.inputs)
    return Apply(prim.form.fn, operands, prim.dtype)


def _origin(at: Read) -> tuple[Read, Read]:
    """Return where the last views before an origin start, and where they end."""
    while True:
        end = read(at.prim, at.index)
        form, prim = end.prim.form, end.prim
        copied = isinstance(form, Map) and form.fn in ("identity", "cast")
        if not copied or _changes_value(prim) or _wraps(prim):
            return at, end
        (operand,) = prim.inputs
        at = Read(operand, operand_index(operand.shape, prim.shape, resolve(end.index)))


def _wraps(prim: Prim) -> bool:
    """Whether whole numbers are cast to a dtype that may not hold them."""
    return prim.form == _CAST and prim.dtype in _NARROW and "int" in (prim.inputs[0].dtype or "")


def _readable(start: Read, end: Read) -> Read:
    """Return the furthest read whose axes are arithmetic progressions: what an emitter can read."""
    if all(d.dense() is not None for d in end.index):
        return end
    found = start
    for at in _views(start):
        if all(d.dense() is not None for d in resolve(at.index)):
            found = at
    return found


def _changes_value(prim: Prim) -> bool:
    """Whether a cast is more than a change of precision: to bool, or from floating point to integer."""
    if isinstance(prim.form, Map) and prim.form.fn == "identity":
        return False
    old, new = prim.inputs[0].dtype or "", prim.dtype or ""
    if new == "bool":
        return old != "bool"
    return "float" in old and "int" in new


_NARROW = ("float16", "bfloat16", "int8", "int16", "uint8", "uint16", "uint32", "uint64")
"""dtypes in which positions are not what they are counted to be: they wrap around, or are rounded."""


def _narrows(prim: Prim, inner: Term) -> bool:
    """Whether a cast takes positions to a dtype that may not hold them."""
    return _wraps(prim) and any(isinstance(at, Position) for at in leaves(inner))


def leaves(term: Term) -> Iterator[Read | Number | Position]:
    """Yield the leaves, left to right."""
    stack = [term]
    while stack:
        at = stack.pop()
        if isinstance(at, Apply):
            stack.extend(reversed(at.args))
        else:
            yield at


def depends_on(term: Term) -> frozenset[Atom]:
    """Return the atoms that survive in a term: true dependence, not tensor rank."""
    found: set[Atom] = set()
    for at in leaves(term):
        if isinstance(at, Read):
            found |= at.atoms
        elif isinstance(at, Position):
            found |= atoms_of((at.value,))
    return frozenset(found)


def substitute(term: Term, atoms: Mapping[Atom, Affine]) -> Term:
    """Replace atoms by affine forms."""

    def replace(dim: Affine) -> Affine:
        total = Affine(dim.start)
        for atom, stride in dim.terms:
            total = total.plus(atoms.get(atom, Affine.of(atom)).times(stride))
        return total

    match term:
        case Read(prim, index):
            return Read(prim, tuple(replace(d) for d in resolve(index)))
        case Position(value):
            return Position(replace(resolve((value,))[0]))
        case Apply(fn, args, dtype, whole):
            moved = substitute(whole, atoms) if whole is not None else None
            assert moved is None or isinstance(moved, Read)
            return Apply(fn, tuple(substitute(a, atoms) for a in args), dtype, moved)
        case _:
            return term


def same(a: Term, b: Term) -> bool:
    """Whether two terms are the same by structure."""
    stack = [(a, b)]
    while stack:
        x, y = stack.pop()
        match x, y:
            case Read(p, i), Read(q, j):
                if p is not q or resolve(i) != resolve(j):
                    return False
            case Number(v), Number(w):
                if v != w:
                    return False
            case Position(v), Position(w):
                if resolve((v,)) != resolve((w,)):
                    return False
            case Apply(f, xs), Apply(g, ys):
                if f != g or len(xs) != len(ys):
                    return False
                stack.extend(zip(xs, ys, strict=True))
            case _:
                return False
    return True
