"""From terms to formulas and values."""

from __future__ import annotations

from rewriter.algebra.index import Affine, Atom
from rewriter.algebra.term import Apply, Number, Position, Read, Term, depends_on, same, substitute
from rewriter.sites.formula import Axes
from rewriter.sites.masks.coordinates import Linear, Positions
from rewriter.sites.masks.formulas import FALSE, TRUE, Formula, Opaque, Same, both, either, negate
from rewriter.sites.masks.values import Value, applied, choose, compared, number

__all__ = ["Reader"]

_COMPARISONS = frozenset("le lt ge gt eq ne".split())


class Reader:
    """Reads the terms of one site's mask."""

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        self.positions = Positions(axes)
        self.batch = _parts(axes.batch)
        self.queries = _parts(axes.queries)
        self.keys = _parts(axes.keys)

    def formula(self, term: Term) -> Formula:
        """Return a condition as a formula; numbers hold where they are not 0."""
        match term:
            case Number(value):
                return TRUE if value else FALSE
            case Apply("and", args):
                return both(*map(self.formula, args))
            case Apply("or", args):
                return either(*map(self.formula, args))
            case Apply("not", (inner,)):
                return negate(self.formula(inner))
            case Apply("xor", (a, b)):
                x, y = self.formula(a), self.formula(b)
                return both(either(x, y), either(negate(x), negate(y)))
            case Apply("where", (condition, a, b)) if is_truth(term):
                c, x, y = self.formula(condition), self.formula(a), self.formula(b)
                return both(either(negate(c), x), either(c, y))
            case Apply(fn, (a, b)) if fn in _COMPARISONS:
                return self._comparison(term, fn, a, b)
            case Apply("cast", (inner,), "bool"):
                return self.formula(inner)
            case _:
                return Opaque(term) if is_truth(term) else self._nonzero(term)

    def value(self, term: Term) -> Value | None:
        """Return a number as a value; None if it is not looked into."""
        match term:
            case Number(value):
                return number(value)
            case Position(value):
                return self.positions.linear(value)
            case Apply("where", (condition, a, b)) if not is_truth(term):
                x, y = self.value(a), self.value(b)
                return None if x is None or y is None else choose(self.formula(condition), x, y)
            case Apply() if is_truth(term):
                return choose(self.formula(term), Linear.number(1), Linear.number(0))
            case Read() if is_truth(term):
                return choose(Opaque(term), Linear.number(1), Linear.number(0))
            case Apply(fn, args):
                values = [self.value(arg) for arg in args]
                known = [v for v in values if v is not None]
                return applied(fn, known, self.positions) if len(known) == len(values) else None
            case _:
                return None

    def _nonzero(self, term: Term) -> Formula:
        value = self.value(term)
        found = None if value is None else compared("ne", value, number(0), self.positions)
        return Opaque(term) if found is None else found

    def _comparison(self, term: Term, fn: str, a: Term, b: Term) -> Formula:
        x, y = self.value(a), self.value(b)
        found = None if x is None or y is None else compared(fn, x, y, self.positions)
        if (found is None or _looked_past(found)) and fn in ("eq", "ne"):
            ids = self._ids(a, b)
            if ids is not None:
                return ids if fn == "eq" else negate(ids)
        return Opaque(term) if found is None else found

    def _ids(self, a: Term, b: Term) -> Formula | None:
        """Return the comparison of an id of the query with an id of the key."""
        if same(a, b):
            return None if may_be_nan(a) else TRUE
        left, right = depends_on(a), depends_on(b)
        if left & self.keys and right & self.queries:
            a, b, left, right = b, a, right, left
        apart = left <= self.queries | self.batch and right <= self.keys | self.batch
        return Same(a, b) if apart and left & self.queries and right & self.keys else None

    def shared(self, ids: Same) -> bool:
        """Whether query and key at the same position have the same id: proved, else False."""
        queries, keys = self.positions.count["queries"], self.positions.count["keys"]
        i, j = (_ordered(atoms) for atoms in (self.axes.queries, self.axes.keys))
        if queries != keys or [a.size for a in i] != [a.size for a in j] or may_be_nan(ids.query):
            return False
        moved = substitute(ids.query, {a: Affine.of(b) for a, b in zip(i, j, strict=True)})
        return same(moved, ids.key)


def is_truth(term: Term) -> bool:
    """Whether a term is true or false."""
    match term:
        case Read(prim, _):
            return prim.dtype == "bool"
        case Apply(_, _, dtype):
            return dtype == "bool"
        case _:
            return False


def may_be_nan(term: Term) -> bool:
    """Whether a tensor may hold what is not equal to itself."""
    match term:
        case Read(prim, _):
            return "int" not in (prim.dtype or "") and prim.dtype != "bool"
        case Apply(_, args, dtype):
            if "int" in (dtype or "") or dtype == "bool":
                return False
            return any(map(may_be_nan, args)) or dtype is not None
        case _:
            return False


def _looked_past(formula: Formula) -> bool:
    """Whether a formula has a part that is not looked into."""
    match formula:
        case Opaque():
            return True
        case _:
            return any(map(_looked_past, getattr(formula, "parts", ())))


def _parts(atoms: tuple[Atom, ...]) -> frozenset[Atom]:
    return frozenset(_ordered(atoms))


def _ordered(atoms: tuple[Atom, ...]) -> list[Atom]:
    return [p for a in atoms for p in a.parts()]
