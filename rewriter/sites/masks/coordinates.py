"""Positions of queries and keys, and whole numbers that are made of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rewriter.algebra.index import Affine, Atom, resolve
from rewriter.algebra.sizes import ONE, ZERO, Size
from rewriter.sites.formula import Axes

__all__ = ["Coordinate", "Linear", "Positions", "Side"]

Side = Literal["queries", "keys"]


@dataclass(frozen=True, slots=True)
class Coordinate:
    """``(position + shift) // divisor``, modulo ``modulus`` unless that is None."""

    side: Side
    shift: Size = ZERO
    divisor: Size = ONE
    modulus: Size | None = None

    @property
    def kind(self) -> tuple[Size, Size, Size | None]:
        """What it is, whichever side it belongs to."""
        return self.shift, self.divisor, self.modulus


@dataclass(frozen=True, slots=True)
class Linear:
    """``start + sum(factor * coordinate)``, each coordinate once."""

    start: Size
    terms: tuple[tuple[Coordinate, Size], ...] = ()

    @staticmethod
    def number(value: int) -> Linear:
        """Return a number."""
        return Linear(Size.of(value))

    @staticmethod
    def of(start: Size, terms: Iterable[tuple[Coordinate, Size]]) -> Linear:
        """Return the sum, like terms collected."""
        total: dict[Coordinate, Size] = {}
        for coordinate, factor in terms:
            total[coordinate] = total.get(coordinate, ZERO) + factor
        kept = [(c, f) for c, f in total.items() if f != ZERO]
        return Linear(start, tuple(sorted(kept, key=repr)))

    @property
    def known(self) -> int | None:
        """The number, if it is one."""
        return None if self.terms else self.start.known()

    @property
    def sides(self) -> frozenset[Side]:
        """Whose positions it depends on."""
        return frozenset(c.side for c, _ in self.terms)

    def plus(self, other: Linear) -> Linear:
        """Return the sum."""
        return Linear.of(self.start + other.start, (*self.terms, *other.terms))

    def times(self, factor: Size) -> Linear:
        """Return the multiple."""
        return Linear.of(self.start * factor, ((c, f * factor) for c, f in self.terms))


class Positions:
    """The positions of one site: how many there are, and which affine forms are made of them."""

    def __init__(self, axes: Axes) -> None:
        self._axes = axes
        self._atoms: dict[Side, tuple[Atom, ...]] = {"queries": axes.queries, "keys": axes.keys}
        self.count: dict[Side, Size] = {side: axes.size(side) for side in ("queries", "keys")}

    def linear(self, affine: Affine) -> Linear | None:
        """Return an affine form over query and key atoms in coordinates; None if it has other atoms."""
        affine = resolve((affine,))[0]
        strides = dict(affine.terms)
        terms: list[tuple[Coordinate, Size]] = []
        for side, atoms in self._atoms.items():
            parts = [p for atom in atoms for p in atom.parts()]
            terms += _runs(side, parts, strides)
        return None if strides else Linear.of(affine.start, terms)

    def range(self, coordinate: Coordinate) -> tuple[Size | None, Size | None]:
        """Return the lowest and the highest value, each None where it is not known."""
        shift, divisor, modulus = coordinate.kind
        last = self.count[coordinate.side] - 1 + shift
        if modulus is not None:
            known = divisor.known(), last.known(), modulus.known()
            if shift == ZERO and None not in known:
                return ZERO, Size.of(min(known[1] // known[0], known[2] - 1))  # type: ignore[operator]
            return ZERO, modulus - 1
        return _floor(shift, divisor), _floor(last, divisor)

    def bounds(self, linear: Linear) -> tuple[Size | None, Size | None]:
        """Return the lowest and the highest value, each None where it is not known."""
        low: Size | None = linear.start
        high: Size | None = linear.start
        for coordinate, factor in linear.terms:
            ends = self.range(coordinate)
            if (-factor).at_least(0):
                ends = ends[1], ends[0]
            elif not factor.at_least(0):
                return None, None
            low = None if low is None or ends[0] is None else low + ends[0] * factor
            high = None if high is None or ends[1] is None else high + ends[1] * factor
        return low, high

    def floor(self, linear: Linear, by: Size) -> Linear | None:
        """Return ``linear // by``, for a positive divisor."""
        parts = self._divided(linear, by)
        if parts is not None:
            return parts[0]
        single = _single(linear)
        if single is None:
            return None
        shift, divisor, modulus = single.kind
        if modulus is None and divisor == ONE:
            return Linear.of(ZERO, [(Coordinate(single.side, shift + linear.start, by), ONE)])
        if linear.start != ZERO:
            return None
        wider = None if modulus is None else modulus.divide(by)
        if modulus is not None and wider is None:
            return None
        return Linear.of(ZERO, [(Coordinate(single.side, shift, divisor * by, wider), ONE)])

    def modulo(self, linear: Linear, by: Size) -> Linear | None:
        """Return ``linear % by``, for a positive divisor."""
        parts = self._divided(linear, by)
        if parts is not None:
            return parts[1]
        single = _single(linear)
        if single is None:
            return None
        shift, divisor, modulus = single.kind
        if modulus is None and divisor == ONE:
            return Linear.of(ZERO, [(Coordinate(single.side, shift + linear.start, ONE, by), ONE)])
        if linear.start != ZERO or (modulus is not None and modulus.divide(by) is None):
            return None
        return Linear.of(ZERO, [(Coordinate(single.side, shift, divisor, by), ONE)])

    def _divided(self, linear: Linear, by: Size) -> tuple[Linear, Linear] | None:
        """Return quotient and remainder where every term belongs to one of them."""
        high = [(c, q) for c, f in linear.terms if (q := f.divide(by)) is not None]
        low = [(c, f) for c, f in linear.terms if f.divide(by) is None]
        whole, left = _split(linear.start, by)
        rest = Linear.of(left, low)
        bottom, top = self.bounds(rest)
        if bottom is None or top is None or not bottom.at_least(0) or not (by - 1 - top).at_least(0):
            return None
        return Linear.of(whole, high), rest


def _runs(side: Side, parts: list[Atom], strides: dict[Atom, Size]) -> list[tuple[Coordinate, Size]]:
    """Take the atoms of one side out of ``strides``: neighbouring atoms make one coordinate."""
    found: list[tuple[Coordinate, Size]] = []
    place = ONE  # how many positions one step of the next atom is
    open_: tuple[Size, Size, Size] | None = None  # divisor, factor and size of the run so far
    for atom in reversed(parts):
        stride = strides.pop(atom, None)
        if open_ is not None and stride == open_[1] * open_[2]:
            open_ = open_[0], open_[1], open_[2] * atom.size
        else:
            found += _closed(side, open_, place, last=False)
            open_ = None if stride is None else (place, stride, atom.size)
        place = place * atom.size
    return found + _closed(side, open_, place, last=True)


def _closed(
    side: Side, run: tuple[Size, Size, Size] | None, place: Size, last: bool
) -> list[tuple[Coordinate, Size]]:
    if run is None:
        return []
    divisor, factor, size = run
    return [(Coordinate(side, ZERO, divisor, None if last else size), factor)]


def _single(linear: Linear) -> Coordinate | None:
    if len(linear.terms) == 1 and linear.terms[0][1] == ONE:
        return linear.terms[0][0]
    return None


def _split(start: Size, by: Size) -> tuple[Size, Size]:
    if start.static and by.static:
        whole, left = divmod(int(start), int(by))
        return Size.of(whole), Size.of(left)
    quotient = start.divide(by)
    return (ZERO, start) if quotient is None else (quotient, ZERO)


def _floor(value: Size, by: Size) -> Size | None:
    if by == ONE:
        return value
    if value.static and by.static:
        return Size.of(int(value) // int(by))
    # one less than a multiple, or a multiple
    above = (value + 1).divide(by)
    return value.divide(by) if above is None else above - 1
