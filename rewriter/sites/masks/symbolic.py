"""Facts from the clauses of a formula: for any length, since nothing is evaluated."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import reduce

from rewriter.algebra.index import Atom
from rewriter.algebra.sizes import ONE, ZERO, Size
from rewriter.algebra.term import Apply, Position, Term, depends_on
from rewriter.sites.masks.coordinates import Coordinate, Linear, Side
from rewriter.sites.masks.formulas import AtMost, Clause, Congruent, Formula, Literal, Opaque, Same, clauses
from rewriter.sites.masks.proof import Proof, band_of
from rewriter.sites.masks.reader import Reader
from rewriter.sites.patterns import Blocks, GridAxis, Neighbourhood, Prefix, Segments, Stride

__all__ = ["prove"]

_UNKNOWN = Proof(unknown=True)
Kind = tuple[Size, Size, Size | None]
_PLAIN: Kind = (ZERO, ONE, None)


@dataclass
class _Limits:
    """``lower <= key - query <= upper`` for one coordinate, and the keys that are free of each limit."""

    lower: Size | None = None
    upper: Size | None = None
    free_of_lower: Size | None = None
    free_of_upper: Size | None = None
    dilation: Size | None = None


@dataclass
class _Gathered:
    reader: Reader
    limits: dict[tuple[Kind, Kind], _Limits] = field(default_factory=dict)
    proofs: list[Proof] = field(default_factory=list)

    def of(self, kinds: tuple[Kind, Kind]) -> _Limits:
        return self.limits.setdefault(kinds, _Limits())


def prove(formula: Formula, reader: Reader) -> Proof:
    """Return what is proved of the keys that a formula lets be seen."""
    # single literals come first: limits that some keys are free of are only taken where there are no others
    found = clauses(formula, reader.positions)
    if found is None or () in found:
        return _UNKNOWN
    gathered = _Gathered(reader)
    for clause in sorted(found, key=len):
        _take(clause, gathered)
    proofs = [*gathered.proofs, *_of_limits(gathered)]
    return reduce(Proof.joined, proofs, Proof())


def _take(clause: Clause, into: _Gathered) -> None:
    """Note what one clause says."""
    if len(clause) == 1 and _unit(clause[0], into):
        return
    where = _depends(clause, into.reader)
    if where is not None:
        into.proofs.append(Proof(hides_keys=where == "keys", hides_queries=where == "queries"))
    elif not (len(clause) == 2 and (_guarded(*clause, into) or _guarded(*clause[::-1], into))):
        into.proofs.append(_prefix(clause, into.reader) or _UNKNOWN)


def _unit(literal: Literal, into: _Gathered) -> bool:
    match literal:
        case AtMost(value):
            return _bound(value, into)
        case Congruent(value, modulus, False):
            return _stride(value, modulus, into)
        case Same(query, key, False):
            own = into.reader.shared(literal)
            into.proofs.append(Proof(segments=Segments(query, key), own=own))
            return True
        case _:
            return False


def _bound(value: Linear, into: _Gathered) -> bool:
    """Note a limit on the difference of one coordinate of key and query."""
    found = _ahead(value, into.reader)
    if found is None:
        return False
    kinds, upward, limit = found
    limits = into.of(kinds)
    if upward:
        if limits.upper is not None and not (limits.upper - limit).at_least(0):
            return (limit - limits.upper).at_least(0)
        limits.upper = limit
    else:
        if limits.lower is not None and not (limit - limits.lower).at_least(0):
            return (limits.lower - limit).at_least(0)
        limits.lower = limit
    return True


def _ahead(value: Linear, reader: Reader) -> tuple[tuple[Kind, Kind], bool, Size] | None:
    """Read ``value <= 0`` as ``key - query <= limit`` (upward) or ``key - query >= limit``."""
    by_side: dict[Side, tuple[Coordinate, Size]] = {c.side: (c, f) for c, f in value.terms}
    if len(by_side) != len(value.terms) or not by_side:
        return None
    key, query = by_side.get("keys"), by_side.get("queries")
    if key is None or query is None:
        return _single_ahead(value, reader)
    factor = key[1].known()
    if factor is None or factor == 0 or query[1] != Size.of(-factor):
        return None
    start = value.start
    if abs(factor) != 1:
        if not start.static:
            return None
        start = Size.of(-((-int(start)) // abs(factor)))
    kinds = key[0].kind, query[0].kind
    return (kinds, True, -start) if factor > 0 else (kinds, False, start)


def _single_ahead(value: Linear, reader: Reader) -> tuple[tuple[Kind, Kind], bool, Size] | None:
    """Read a limit on a position alone where the other side has one position only."""
    (coordinate, factor), other = value.terms[0], "queries" if value.terms[0][0].side == "keys" else "keys"
    alone = reader.positions.count[other] == ONE  # type: ignore[index]
    if not alone or coordinate.kind != _PLAIN or factor.known() not in (1, -1):
        return None
    upward = (int(factor) > 0) == (coordinate.side == "keys")
    # one query that sees the keys from some place on: that is padding
    if not upward and not (-value.start).at_least(0):
        return None
    return (_PLAIN, _PLAIN), upward, -value.start if upward else value.start


def _stride(value: Linear, modulus: Size, into: _Gathered) -> bool:
    plain = len(value.terms) == 2 and all(f.known() in (1, -1) for _, f in value.terms)
    found = _ahead(value, into.reader) if plain else None
    if found is None:
        return False
    kinds, _, limit = found
    if kinds == (_PLAIN, _PLAIN):
        # value = key - query - limit, or its opposite: what is a multiple of `modulus` is the same
        into.proofs.append(Proof(stride=Stride(modulus, _reduced(limit, modulus))))
        return True
    if limit.divide(modulus) is None or into.of(kinds).dilation not in (None, modulus):
        return False
    into.of(kinds).dilation = modulus
    return True


def _reduced(offset: Size, modulus: Size) -> Size:
    if offset.static and modulus.static:
        return Size.of(int(offset) % int(modulus))
    return ZERO if offset.divide(modulus) is not None else offset


def _depends(clause: Iterable[Literal], reader: Reader) -> Side | None:
    """Return the side that a clause is about, if it is about one."""
    atoms: set[Atom] = set()
    sides: set[Side] = set()
    for literal in clause:
        match literal:
            case AtMost(value) | Congruent(value):
                sides |= value.sides
            case Opaque(term):
                atoms |= depends_on(term)
            case Same(query, key):
                atoms |= depends_on(query) | depends_on(key)
    atoms -= reader.batch
    keyed = atoms <= reader.keys and "queries" not in sides
    queried = atoms <= reader.queries and "keys" not in sides
    if keyed:
        return "keys"
    return "queries" if queried else None


def _guarded(band: Literal, free: Literal, into: _Gathered) -> bool:
    """Note a limit that some keys at one end of the axis are free of, as at the border of a grid."""
    if not isinstance(band, AtMost) or not isinstance(free, AtMost) or len(band.value.terms) != 2:
        return False
    found = _ahead(band.value, into.reader)
    if found is None or len(free.value.terms) != 1 or free.value.sides != {"keys"}:
        return False
    kinds, upward, limit = found
    (coordinate, factor), start = free.value.terms[0], free.value.start
    if coordinate.kind != kinds[0] or factor.known() != (1 if upward else -1) or kinds[0] != kinds[1]:
        return False
    limits = into.of(kinds)
    if upward and limits.upper is None:
        limits.upper, limits.free_of_upper = limit, 1 - start
        return True
    if not upward and limits.lower is None:
        limits.lower, limits.free_of_lower = limit, start
        return True
    return False


def _prefix(clause: Clause, reader: Reader) -> Proof | None:
    """Read "in the band, or before a length"."""
    length: Size | None = None
    source: Term | None = None
    band: list[Proof] = []
    for literal in clause:
        before = _before(literal, reader)
        found = _ahead(literal.value, reader) if isinstance(literal, AtMost) else None
        if before is not None and length is None and source is None:
            length, source = before
        elif found is not None and found[0] == (_PLAIN, _PLAIN):
            band.append(Proof(upper=found[2]) if found[1] else Proof(lower=found[2]))
        else:
            return None
    if len(band) != 1 or (length is None and source is None):
        return None
    shape = band_of(band[0].lower, band[0].upper)
    return None if shape is None else Proof(prefix=Prefix(length, shape, source))


def _before(literal: Literal, reader: Reader) -> tuple[Size | None, Term | None] | None:
    """Read a literal as "the key is before a length": a size, or a term over the batch."""
    match literal:
        case AtMost(value) if len(value.terms) == 1 and value.sides == {"keys"}:
            coordinate, factor = value.terms[0]
            return (1 - value.start, None) if coordinate.kind == _PLAIN and factor == ONE else None
        case Opaque(Apply(("le" | "lt" | "ge" | "gt") as spelled, (a, b)), negated):
            fn = _OPPOSITE[spelled] if negated else spelled
            if fn == "gt":
                fn, a, b = "lt", b, a
            whole = reader.positions.linear(a.value) if isinstance(a, Position) else None
            if whole != Linear.of(ZERO, [(Coordinate("keys"), ONE)]) or fn != "lt":
                return None
            return (None, b) if depends_on(b) <= reader.batch else None
        case _:
            return None


_OPPOSITE = {"le": "gt", "lt": "ge", "ge": "lt", "gt": "le"}


def _of_limits(gathered: _Gathered) -> Iterable[Proof]:
    """Turn the limits on coordinates into facts."""
    grid: dict[Kind, _Limits] = {}
    for (of_key, of_query), limits in gathered.limits.items():
        equal = limits.lower == limits.upper == ZERO and limits.dilation is None
        if of_key == of_query == _PLAIN:
            yield _of_positions(limits, gathered.reader)
        elif equal and not _is_free(limits):
            yield _same_place(of_key, of_query, limits)
        elif of_key == of_query and of_key[0] == ZERO:
            grid[of_key] = limits
        else:
            yield _UNKNOWN
    if grid:
        shape = _grid(grid, gathered.reader)
        yield _UNKNOWN if shape is None else Proof(neighbourhood=shape)


def _is_free(limits: _Limits) -> bool:
    return limits.free_of_lower is not None or limits.free_of_upper is not None


def _of_positions(limits: _Limits, reader: Reader) -> Proof:
    if not _is_free(limits):
        return Proof(limits.lower, limits.upper)
    count = reader.positions.count
    if limits.free_of_lower is None and limits.upper is not None:
        shape = band_of(None, limits.upper)
        assert shape is not None
        return Proof(limits.lower, prefix=Prefix(limits.free_of_upper, shape))
    axis = _axis(limits, count["keys"]) if count["keys"] == count["queries"] else None
    return _UNKNOWN if axis is None else Proof(neighbourhood=Neighbourhood((axis,)))


def _same_place(of_key: Kind, of_query: Kind, limits: _Limits) -> Proof:
    """Query and key agree in a coordinate: the block, the residue, or another id."""
    _, divisor, modulus = of_key
    if of_query[1:] != of_key[1:]:
        return _UNKNOWN
    if modulus is None:
        return Proof(blocks=Blocks(divisor, of_query[0], of_key[0]))
    if divisor == ONE:
        return Proof(stride=Stride(modulus, _reduced(of_query[0] - of_key[0], modulus)))
    return Proof(segments=Segments(), own=of_key == of_query)


def _grid(found: dict[Kind, _Limits], reader: Reader) -> Neighbourhood | None:
    """Put axes together, slow to fast; axes that nothing is said of are filled in."""
    count = reader.positions.count
    if count["queries"] != count["keys"]:
        return None
    axes: list[GridAxis] = []
    place = ONE
    for kind in sorted(found, key=lambda k: (k[2] is None, len(str(k[1])), str(k[1]))):
        _, divisor, modulus = kind
        between = divisor.divide(place)
        if between is None:
            return None
        if between != ONE:
            axes.insert(0, GridAxis(between))
        size = count["keys"].divide(divisor) if modulus is None else modulus
        axis = _axis(found[kind], size)
        if axis is None:
            return None
        axes.insert(0, axis)
        place = divisor * (modulus or ONE)
        if modulus is None:
            return Neighbourhood(tuple(axes))
    return Neighbourhood((GridAxis(count["keys"].divide(place)), *axes))


def _axis(limits: _Limits, size: Size | None) -> GridAxis | None:
    lower = None if limits.lower is None else limits.lower.known()
    upper = None if limits.upper is None else limits.upper.known()
    dilation = ONE if limits.dilation is None else limits.dilation
    if (limits.lower is not None and lower is None) or (limits.upper is not None and upper is None):
        return None
    if not dilation.static or (0 if lower is None else lower) > (0 if upper is None else upper):
        return None
    if not _is_free(limits):
        return GridAxis(size, None if lower is None else -lower, upper, dilation=int(dilation))
    if lower is None or upper is None:
        return None
    width = Size.of(upper - lower + 1)
    if size is None or dilation != ONE or limits.free_of_upper != width or lower > 0 or upper < 0:
        return None
    if limits.free_of_lower != size - width:
        return None
    return GridAxis(size, -lower, upper, clamped=True)
