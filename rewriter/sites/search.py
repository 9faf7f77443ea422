"""What is known of a graph while it is searched: orders, readers, what varies, where normalisers lead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rewriter.algebra.index import Atom, Index, fresh
from rewriter.algebra.prims import Einsum, Form, Map, Prim, Slice, Softmax, runs_along
from rewriter.algebra.sizes import Size
from rewriter.algebra.term import VIEWS, Read, Term, leaves, read, source
from rewriter.program.graph import Graph
from rewriter.sites.origin import Origin
from rewriter.sites.refusal import Stage
from rewriter.sites.values import Known

__all__ = ["Miss", "Search", "holds_inverse", "leads_to_sum", "moves"]

_PASS_ON = (Map, *VIEWS)
_ON_DENOMINATORS = tuple(Map(fn) for fn in ("reciprocal", "add", "maximum", "where", "pow"))

_PRODUCTS = (Map("mul"), Map("neg"))
_INVERSES = (Map("reciprocal"), Map("pow"), Map("div"))


@dataclass(frozen=True)
class Miss:
    """Why something is no site, for `rewriter.sites.refusal.Refusal`."""

    reason: str
    reached: Stage = "values"
    nearest: str = "attention"


@dataclass
class Search:
    """A graph in primitive form, with what is asked of every tensor computed once.

    Parameters
    ----------
    graph, prims
        The native graph and its values in primitive form.
    normalised
        Tensors that may be weights: a normaliser, or made of one by maps, views and the mixing of heads.
    chained
        Tensors that are a product of two operands that both vary, or made of one by maps and views.
    parts
        Sums with values over some of the entries of a softmax, and that softmax.
    """

    graph: Graph
    prims: Mapping[str, Prim]
    order: list[Prim] = field(default_factory=list)
    children: dict[Prim, list[Prim]] = field(default_factory=dict)
    normalised: set[Prim] = field(default_factory=set)
    chained: set[Prim] = field(default_factory=set)
    known: Known = field(default_factory=Known)
    raised: set[Prim] = field(default_factory=set)
    misses: dict[Prim, Miss] = field(default_factory=dict)
    parts: dict[Prim, Prim] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.order = _topological(self.prims.values())
        self.origin = Origin(self.graph, self.prims)
        mixed: set[Prim] = set()
        for prim in self.order:
            for x in dict.fromkeys(prim.inputs):
                self.children.setdefault(x, []).append(prim)
            passes_on, operands = isinstance(prim.form, _PASS_ON), _multiplied(prim)
            if _is_normaliser(prim) or (passes_on and not self.normalised.isdisjoint(prim.inputs)):
                self.normalised.add(prim)
            elif self._mixes(operands) or (passes_on and not mixed.isdisjoint(prim.inputs)):
                mixed.add(prim)
            if self._multiplies(prim, operands) or (passes_on and not self.chained.isdisjoint(prim.inputs)):
                self.chained.add(prim)
        self.normalised |= mixed

    def varies(self, term: Term | Prim) -> bool:
        """Whether a tensor or a term depends on the inputs of the model."""
        if isinstance(term, Prim):
            return self.origin.varies(term)
        return any(isinstance(t, Read) and self.origin.varies(t.prim) for t in leaves(term))

    def may_be_weights(self, at: Read) -> bool:
        """Whether a normaliser may lie behind a read."""
        return read(at.prim, at.index).prim in self.normalised

    def may_be_product(self, at: Read) -> bool:
        """Whether a product of two tensors that vary may lie behind a read."""
        return read(at.prim, at.index).prim in self.chained

    def part_of(self, prim: Prim) -> Prim | None:
        """Return the softmax of which a tensor sums some of the entries, or None."""
        while prim not in self.parts and moves(prim.form):
            prim = prim.inputs[0]
        return self.parts.get(prim)

    def unread(self, prim: Prim, axis: int, place: Size) -> bool:
        """Whether everything that reads a tensor leaves out one entry along an axis."""
        stack = [prim]
        while stack:
            at = stack.pop()
            if at.value in self.graph.ends:
                return False
            for child in self.children.get(at, []):
                match child.form:
                    case Slice(cut, start, 1) if cut == axis:
                        end = start + child.shape[axis]
                        if not (start.at_least(place + 1) or place.at_least(end)):
                            return False
                    case Map("identity" | "cast") | Slice():
                        stack.append(child)
                    case _:
                        return False
        return True

    def tokens(self, at: Read, atoms: Iterable[Atom]) -> bool | None:
        """Whether atoms on an operand are tokens (True), features (False), or it is not shown (None)."""
        kinds = {self.origin.axis_kind(at.prim, at.index, a) for a in atoms}
        return kinds == {"token"} if kinds in ({"token"}, {"feature"}) else None

    def _mixes(self, operands: Sequence[Prim]) -> bool:
        """Whether normalised weights are contracted with a matrix or a constant, as heads are mixed."""
        if len(operands) != 2:
            return False
        a, b = operands
        pairs = ((a, _origin(b)), (b, _origin(a)))
        return any(x in self.normalised and (len(y.shape) <= 2 or not self.varies(y)) for x, y in pairs)

    def _multiplies(self, prim: Prim, operands: Sequence[Prim]) -> bool:
        if not operands or (len(prim.inputs) == 1 and _origin(operands[0]) is _origin(operands[1])):
            return False
        return sum(map(self.varies, operands)) >= 2

    def native(self, prim: Prim) -> str | None:
        """Return the nearest named tensor that holds ``prim``: itself, or a view or cast of it."""
        at: Prim | None = prim
        while at is not None and at.value is None:
            following = self.children.get(at, [])
            at = following[0] if len(following) == 1 and moves(following[0].form) else None
        return None if at is None else at.value

    def node(self, prim: Prim) -> str:
        """Return the native node that computes ``prim``, or the nearest one after it."""
        stack, seen = [prim], {prim}
        while stack:
            at = stack.pop(0)
            if at.value is not None:
                producer = self.graph.producer(at.value)
                return at.value if producer is None else producer.name
            for child in self.children.get(at, []):
                if child not in seen:
                    seen.add(child)
                    stack.append(child)
        return repr(prim)

    def output(self, anchor: Prim) -> tuple[str, Index, Index] | None:
        """Return the native result of an anchor, its index in new atoms, and the anchor's own index."""
        value = self.native(anchor)
        if value is None:
            return None
        result = self.prims[value]
        index = fresh(result.shape, "o")
        for at in source(Read(result, index)):
            if at.prim is anchor:
                return value, index, at.index
        return None

    def miss(self, prim: Prim, miss: Miss) -> None:
        """Remember why something is no site; what got further wins."""
        known = self.misses.get(prim)
        if known is None or _FURTHER.index(miss.reached) >= _FURTHER.index(known.reached):
            self.misses[prim] = miss


_FURTHER: tuple[Stage, ...] = ("normaliser", "values", "scores", "operands", "check")


def _topological(roots: Iterable[Prim]) -> list[Prim]:
    order: dict[Prim, None] = {}
    for root in roots:
        stack = [root]
        while stack:
            at = stack[-1]
            if at in order:
                stack.pop()
                continue
            waiting = [x for x in at.inputs if x not in order]
            if waiting:
                stack.extend(waiting)
            else:
                order[at] = None
                stack.pop()
    return list(order)


def _is_normaliser(prim: Prim) -> bool:
    """Whether this may be where weights are normalised: a softmax, or a quotient by a sum."""
    form = prim.form
    if isinstance(form, Softmax):
        return True
    if not isinstance(form, Map):
        return False
    if form.fn == "div":
        return leads_to_sum(prim.inputs[1])
    if form.fn == "exp":
        return _subtracts_logarithm(prim.inputs[0])
    return form.fn == "mul" and any(_is_inverse(x) and leads_to_sum(x) for x in prim.inputs)


def _is_inverse(prim: Prim) -> bool:
    prim = _origin(prim)
    return prim.form in _INVERSES


def _subtracts_logarithm(prim: Prim) -> bool:
    prim = _origin(prim)
    return prim.form == Map("sub") and leads_to_logarithm(prim.inputs[1])


def leads_to_logarithm(prim: Prim) -> bool:
    """Whether this is the logarithm of a sum of exponentials, by itself or added to a maximum."""
    prim = _origin(prim)
    if prim.form == Map("add"):
        return any(leads_to_logarithm(x) for x in prim.inputs)
    return prim.form == Map("log") or getattr(prim.form, "fn", None) == "logsumexp"


def _multiplied(prim: Prim) -> tuple[Prim, ...]:
    """Return the operands of a contraction, also of a product that is summed by itself; else nothing."""
    if not isinstance(prim.form, Einsum):
        return ()
    if len(prim.inputs) > 1 and runs_along(prim) is None:
        return prim.inputs
    inner = _origin(prim.inputs[-1])
    return inner.inputs if inner.form == Map("mul") else ()


def _origin(prim: Prim) -> Prim:
    while moves(prim.form):
        prim = prim.inputs[0]
    return prim


def leads_to_sum(prim: Prim, depth: int = 8) -> bool:
    """Whether this is a sum, seen through views, copies and what is done to denominators."""
    if isinstance(prim.form, Einsum):
        return True
    if depth and (moves(prim.form) or prim.form in _ON_DENOMINATORS or prim.form == Map("div")):
        return any(leads_to_sum(x, depth - 1) for x in prim.inputs)
    return False


def holds_inverse(prim: Prim, depth: int = 6) -> bool:
    """Whether a product may have an inverse among its factors."""
    for x in map(_origin, prim.inputs):
        if _is_inverse(x) or (depth and x.form in _PRODUCTS and holds_inverse(x, depth - 1)):
            return True
    return False


def moves(form: Form) -> bool:
    """Whether a form only moves values: a view, a copy or a cast."""
    return isinstance(form, VIEWS) or (isinstance(form, Map) and form.fn in ("cast", "identity"))
