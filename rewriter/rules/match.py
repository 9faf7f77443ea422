"""Matching a pattern against a value of a graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import permutations
from typing import Any, TypeVar

from rewriter.algebra.index import Affine, Atom, aligned, fresh, resolve
from rewriter.algebra.prims import Concat, Leaf, Prim, Reduce
from rewriter.algebra.prims import Softmax as SoftmaxForm
from rewriter.algebra.sizes import ONE, ZERO, product
from rewriter.algebra.term import Apply, Number, Read, Term, depends_on, leaves, origin, source, substitute
from rewriter.rules.cuts import (
    TooManyWaysError,
    bounded,
    contraction,
    identical,
    opened,
    products,
    sums,
)
from rewriter.rules.pattern import (
    Axis,
    Call,
    Choice,
    Fold,
    Known,
    Pattern,
    Power,
    Product,
    Softmax,
    Sum,
    Tensor,
)

__all__ = ["Bound", "Matcher", "match"]

CLOSE = 1e-5
"""How far a number may be from the one that a pattern names: graphs hold them in single precision."""


@dataclass(frozen=True)
class Bound:
    """What the names of a pattern stand for.

    Parameters
    ----------
    root
        Where the value is read: one index per axis.
    terms
        Values by name.
    numbers
        Known numbers by name.
    axes
        Atoms by the names of axes.
    labels
        Which alternative was taken, by the names of choices.
    twins
        Reads that hold what another one holds, because the graph computes it twice: that one, and this.
    """

    root: Read
    terms: Mapping[str, Term] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    axes: Mapping[str, tuple[Atom, ...]] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    twins: tuple[tuple[Read, Read], ...] = ()

    def atoms(self, axis: str) -> tuple[Atom, ...]:
        """Return the atoms of an axis as they are now split, slow to fast."""
        return _parts(self.axes[axis])

    @property
    def result(self) -> tuple[Atom, ...]:
        """The atoms of the value that was matched, in the order of its axes."""
        return tuple(a for dim in resolve(self.root.index) for a, _ in dim.terms)

    def _with_term(self, name: str, term: Term) -> Bound:
        return Bound(self.root, {**self.terms, name: term}, self.numbers, self.axes, self.labels, self.twins)

    def _with_labels(self, labels: Mapping[str, str]) -> Bound:
        if not labels:
            return self
        return Bound(self.root, self.terms, self.numbers, self.axes, {**self.labels, **labels}, self.twins)

    def _with_axis(self, name: str, atoms: tuple[Atom, ...]) -> Bound:
        return Bound(self.root, self.terms, self.numbers, {**self.axes, name: atoms}, self.labels, self.twins)

    def _with_number(self, name: str | None, value: float) -> Bound | None:
        if name is None:
            return self
        known = self.numbers.get(name)
        if known is not None:
            return self if _close(known, value) else None
        return Bound(self.root, self.terms, {**self.numbers, name: value}, self.axes, self.labels, self.twins)


def match(pattern: Pattern, prim: Prim) -> Bound | None:
    """Return what the names of a pattern stand for in a value, or None if it is another formula.

    Raises
    ------
    TooManyWaysError
        When there are too many ways to read the value.
    """
    return _match(pattern, Read(prim, fresh(prim.shape)))


def _match(pattern: Pattern, root: Read) -> Bound | None:
    with bounded():
        for found, scale in _matched(pattern, root, Bound(root)):
            if _close(scale, 1.0):
                return found
    return None


class Matcher:
    """Matches patterns with the values of one program.

    A pattern for which there were too many ways to read one value is not tried again: a program made of such
    values would take forever. What one pattern has taken apart of a value the next one finds as it is.
    """

    def __init__(self) -> None:
        self._given_up: set[int] = set()
        self._last: tuple[int, Read] | None = None

    def __call__(self, pattern: Pattern, prim: Prim) -> Bound | None:
        """Return what `match` does, or None where a pattern is given up."""
        if id(pattern) in self._given_up:
            return None
        try:
            return _match(pattern, self._root(prim))
        except TooManyWaysError:
            self._given_up.add(id(pattern))
            return None

    def _root(self, prim: Prim) -> Read:
        """Return where a value is read: as the last time, unless an axis has been cut since."""
        if self._last is None or self._last[0] != Atom.cuts or self._last[1].prim is not prim:
            self._last = Atom.cuts, Read(prim, fresh(prim.shape))
        return self._last[1]


Cut = TypeVar("Cut")

Found = Iterator[tuple[Bound, float]]
"""Ways to read a term as ``scale · pattern``."""


def _matched(pattern: Pattern, term: Term, bound: Bound) -> Found:
    return _WAYS[type(pattern)](pattern, term, bound)


def _choice(pattern: Choice, term: Term, bound: Bound) -> Found:
    for label, option in pattern.options:
        for found, scale in _matched(option, term, bound):
            yield found._with_labels({pattern.name: label} if pattern.name else {}), scale


def _known(pattern: Known, term: Term, bound: Bound) -> Found:
    at = opened(term)
    if isinstance(at, Number) and (found := bound._with_number(pattern.name, at.value)) is not None:
        yield found, 1.0


def _tensor(pattern: Tensor, term: Term, bound: Bound) -> Found:
    known = bound.terms.get(pattern.name)
    if known is not None:
        if identical(known, term):
            yield _again(bound, pattern.name, known, term), 1.0
        return
    if not isinstance(term, Read) or isinstance(opened(term), Number):
        return
    if pattern.constant and not _is_constant(term):
        return
    if pattern.stacked is not None and not _is_stacked(term, bound.atoms(pattern.stacked.name)):
        return
    if pattern.over is not None:
        allowed = {a for axis in pattern.over if axis.name in bound.axes for a in bound.atoms(axis.name)}
        if len({a.name for a in pattern.over} & bound.axes.keys()) < len(pattern.over):
            return
        if not depends_on(term) <= allowed:
            return
    yield bound._with_term(pattern.name, term), 1.0


def _again(bound: Bound, name: str, known: Term, term: Term) -> Bound:
    """Return what a name stands for where it is read again, as a cast of it, or as it is computed twice."""
    if not isinstance(known, Read) or not isinstance(term, Read) or known.prim is term.prim:
        return bound
    behind, other = origin(known), origin(term)
    if behind.prim is other.prim:
        return bound._with_term(name, behind)
    return replace(bound, twins=(*bound.twins, (known, term)))


def _is_stacked(term: Read, along: tuple[Atom, ...]) -> bool:
    """Whether a term is read from values that are put together along one axis, one for each place."""
    *_, end = source(term)
    if not isinstance(end.prim.form, Concat):
        return False
    axis = end.prim.form.axis
    one_each = all(part.shape[axis] == ONE for part in end.prim.inputs)
    return one_each and resolve(end.index)[axis].dense() == (along, ONE)


def _is_constant(term: Term) -> bool:
    """Whether a term is computed from constants alone."""
    stack = [at.prim for at in leaves(term) if isinstance(at, Read)]
    seen: set[Prim] = set()
    while stack:
        prim = stack.pop()
        if prim in seen:
            continue
        seen.add(prim)
        if isinstance(prim.form, Leaf) or len(seen) > 16:
            return False
        stack.extend(prim.inputs)
    return True


def _product(pattern: Product, term: Term, bound: Bound) -> Found:
    for plain, labels in pattern.plain:
        assert isinstance(plain, Product)
        for found, scale in _plain_product(plain, term, bound):
            yield found._with_labels(labels), scale


def _plain_product(pattern: Product, term: Term, bound: Bound) -> Found:
    order = sorted(pattern.parts, key=lambda p: _vague(p.base))
    for cut in _finest_first(products(term, len(order)), pattern.unknown):
        if cut.sizes:
            continue
        for found, scale in _factors(order, list(cut.parts), bound):
            total = scale * cut.coefficient / pattern.coefficient
            if pattern.unknown is None:
                yield found, total
            elif (known := found._with_number(pattern.unknown, total)) is not None:
                yield known, 1.0


def _finest_first(cuts: Iterator[Cut], unknown: str | None) -> Iterator[Cut]:
    """Turn cuts around where a number may be anything: the graph's, and not one that changes nothing."""
    return cuts if unknown is None else reversed(list(cuts))


def _vague(pattern: Pattern) -> int:
    """Order parts so that what fits few terms is tried first, and a name that fits all last."""
    match pattern:
        case Tensor(over=over, constant=constant):
            return 2 - constant if over is None else 1
        case _:
            return 0


def _factors(wanted: Sequence[Power], left: list[tuple[Term, Fraction]], bound: Bound) -> Found:
    if not wanted:
        yield bound, 1.0
        return
    first, *others = wanted
    for at, (term, exponent) in enumerate(left):
        if exponent != first.exponent:
            continue
        for found, scale in _matched(first.base, term, bound):
            if scale <= 0 and exponent.denominator != 1:
                continue
            for rest, more in _factors(others, left[:at] + left[at + 1 :], found):
                yield rest, scale ** float(exponent) * more


def _sum(pattern: Sum, term: Term, bound: Bound) -> Found:
    for plain, labels in pattern.plain:
        assert isinstance(plain, Sum)
        for found, scale in _plain_sum(plain, term, bound):
            yield found._with_labels(labels), scale


def _plain_sum(pattern: Sum, term: Term, bound: Bound) -> Found:
    order = sorted(pattern.parts, key=_vague)
    for cut in _finest_first(sums(term, len(order)), pattern.unknown):
        for found, scale in _summed(order, list(cut.parts), bound, None):
            if pattern.unknown is not None:
                known = found._with_number(pattern.unknown, cut.number / scale - pattern.number)
                if known is not None:
                    yield known, scale
            elif _close(cut.number, scale * pattern.number):
                yield found, scale


def _summed(
    wanted: Sequence[Pattern], left: list[tuple[Term, float]], bound: Bound, scale: float | None
) -> Found:
    if not wanted:
        if scale:
            yield bound, scale
        return
    first, *others = wanted
    for at, (term, coefficient) in enumerate(left):
        for found, own in _matched(first, term, bound):
            if scale is None or _close(coefficient * own, scale):
                yield from _summed(others, left[:at] + left[at + 1 :], found, coefficient * own)


def _call(pattern: Call, term: Term, bound: Bound) -> Found:
    at = opened(term)
    if not isinstance(at, Apply) or at.fn != pattern.fn or len(at.args) != len(pattern.args):
        return
    orders = [at.args]
    if pattern.fn in ("maximum", "minimum", "and", "or", "xor", "eq", "ne"):
        orders.append(at.args[::-1])
    for args in orders:
        yield from ((found, 1.0) for found in _arguments(pattern.args, args, bound))


def _arguments(wanted: Sequence[Pattern | float], given: Sequence[Term], bound: Bound) -> Iterator[Bound]:
    if not wanted:
        yield bound
        return
    first, term = wanted[0], given[0]
    if not isinstance(first, Pattern):
        at = opened(term)
        if isinstance(at, Number) and _close(at.value, first):
            yield from _arguments(wanted[1:], given[1:], bound)
        return
    for found, scale in _matched(first, term, bound):
        if _close(scale, 1.0):
            yield from _arguments(wanted[1:], given[1:], found)


def _mean(pattern: Fold, term: Term, bound: Bound) -> Found:
    """Match a sum that is divided by how many there are."""
    total = Fold("sum", pattern.over, pattern.body)
    for cut in products(term, 1):
        ((inner, exponent),) = cut.parts
        if exponent != 1:
            continue
        for found, scale in _fold(total, inner, bound):
            count = product(a.size for axis in pattern.over for a in found.atoms(axis.name))
            sizes = cut.sizes
            if not sizes and count.static:
                yield found, scale * cut.coefficient * int(count)
            elif sizes == ((count, Fraction(-1)),):
                yield found, scale * cut.coefficient


def _fold(pattern: Fold, term: Term, bound: Bound) -> Found:
    if pattern.kind == "mean":
        yield from _mean(pattern, term, bound)
        return
    under = _under(pattern.kind, term)
    if under is None or (pattern.kept and not _is_kept(term)):
        return
    body, dropped = under
    _settle(body)
    atoms = _parts(dropped)
    for found, names in _named(pattern.over, atoms, bound, depends_on(body)):
        renamed = substitute(body, names) if names else body
        for inner, scale in _matched(pattern.body, renamed, found):
            if pattern.kind == "sum" or _close(scale, 1.0):
                yield inner, scale


def _is_kept(term: Term) -> bool:
    """Whether a sum is of one value of the graph, and not of products that are summed at once."""
    at = opened(term)
    return isinstance(at, Read) and len(at.prim.inputs) == 1


def _under(kind: str, term: Term) -> tuple[Term, list[Atom]] | None:
    """Return what a reduction runs over, and the atoms of the axes that it drops."""
    if kind == "sum":
        return contraction(term)
    at = opened(term)
    if not isinstance(at, Read) or not isinstance(at.prim.form, Reduce) or at.prim.form.fn != kind:
        return None
    (operand,) = at.prim.inputs
    axes = sorted(at.prim.form.axes)
    dropped = [Atom(operand.shape[axis]) for axis in axes]
    full = list(at.index)
    for axis, atom in zip(axes, dropped, strict=True):
        full.insert(axis, Affine(ZERO) if atom.size == ONE else Affine.of(atom))
    return Read(operand, tuple(full)), dropped


def _settle(term: Term) -> None:
    """Follow the views behind a term, so that atoms that reshapes cut are cut before they are named."""
    for _ in range(4):
        for at in leaves(term):
            inner = opened(at)
            if isinstance(inner, Apply):
                for arg in inner.args:
                    opened(arg)


def _named(
    over: Sequence[Axis], atoms: tuple[Atom, ...], bound: Bound, used: frozenset[Atom]
) -> Iterator[tuple[Bound, Mapping[Atom, Affine]]]:
    """Yield ways to name the atoms that are summed over: known axes, axes of the result, or new ones.

    ``used`` are the atoms that what is summed depends on: two of its axes are never made one.
    """
    if len(over) != 1 and len(over) != len(atoms):
        return
    shares = [atoms] if len(over) == 1 else [(a,) for a in atoms]
    for order in permutations(shares) if len(over) > 1 else [tuple(shares)]:
        yield from _assigned(over, order, bound, {}, used)


def _assigned(
    over: Sequence[Axis],
    shares: Sequence[tuple[Atom, ...]],
    bound: Bound,
    names: Mapping[Atom, Affine],
    used: frozenset[Atom],
) -> Iterator[tuple[Bound, Mapping[Atom, Affine]]]:
    if not over:
        yield bound, names
        return
    axis, own = over[0], shares[0]
    for atoms in _candidates(axis, own, bound, used):
        pairs = zip(_parts(own), atoms, strict=True)
        renamed = {a: Affine.of(b) for a, b in pairs if a is not b}
        yield from _assigned(
            over[1:], shares[1:], bound._with_axis(axis.name, atoms), {**names, **renamed}, used
        )


def _candidates(
    axis: Axis, own: tuple[Atom, ...], bound: Bound, used: frozenset[Atom]
) -> Iterator[tuple[Atom, ...]]:
    """Yield atoms that may stand for those that are summed over; both are cut to have the same sizes."""

    def fits(atoms: Sequence[Atom]) -> bool:
        alike = len(atoms) == len(own) and all(a.size == b.size for a, b in zip(atoms, own, strict=True))
        return alike and is_new(atoms)

    def is_new(atoms: Sequence[Atom]) -> bool:
        return not any(a in used for a in atoms if a not in own)

    if axis.name in bound.axes:
        known = bound.atoms(axis.name)
        if is_new(known) and aligned(known, own):
            yield _parts(known)
        return
    taken = {a for name in bound.axes for a in bound.atoms(name)}
    free = [a for a in bound.result if a not in taken]
    yield from (atoms for atoms in permutations(free, len(own)) if fits(atoms))
    if len(own) > 1:
        yield from (_parts((a,)) for a in free if is_new((a,)) and aligned((a,), own))
    yield own


def _parts(atoms: Sequence[Atom]) -> tuple[Atom, ...]:
    """Return atoms as they are now cut."""
    return tuple(part for atom in atoms for part in atom.parts())


def _softmax(pattern: Softmax, term: Term, bound: Bound) -> Found:
    at = opened(term)
    if not isinstance(at, Read) or not isinstance(at.prim.form, SoftmaxForm) or at.prim.form.log:
        return
    form = at.prim.form
    dense = resolve(at.index)[form.axis].dense()
    if dense is None or dense[1] != ONE or product(a.size for a in dense[0]) != at.prim.shape[form.axis]:
        return
    known = pattern.over.name in bound.axes
    if known and bound.atoms(pattern.over.name) != dense[0]:
        return
    found = bound if known else bound._with_axis(pattern.over.name, dense[0])
    for inner, scale in _matched(pattern.body, Read(at.prim.inputs[0], at.index), found):
        if _close(scale, 1.0):
            yield inner, 1.0


_WAYS: dict[type[Pattern], Callable[[Any, Term, Bound], Found]] = {
    Call: _call,
    Choice: _choice,
    Fold: _fold,
    Known: _known,
    Product: _product,
    Softmax: _softmax,
    Sum: _sum,
    Tensor: _tensor,
}
"""How a pattern is matched, by its type."""


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=CLOSE, abs_tol=1e-12)
