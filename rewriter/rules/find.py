"""Finding what rules fit in a program."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewriter.algebra.index import Affine, resolve
from rewriter.algebra.prims import POINTWISE, Constant, Einsum, Iota, Leaf, Map, Prim, Reduce
from rewriter.algebra.prims import Softmax as SoftmaxForm
from rewriter.algebra.sizes import Size, product
from rewriter.algebra.term import VIEWS, Read, substitute
from rewriter.lower.canonical import arrange_operand, laid_out
from rewriter.lower.emitter import Emitter, Handle
from rewriter.program.program import Program, Replacement
from rewriter.rules.match import Bound, Matcher
from rewriter.rules.own_code import RuleError, lowered, refused
from rewriter.rules.pattern import Call, Choice, Fold, Pattern, Product, Softmax, Sum, parts_of
from rewriter.rules.rule import Match, Rule
from rewriter.sites.formula import Operand
from rewriter.sites.operands import choose_operand

__all__ = ["PLACES", "Found", "Near", "Refused", "ending", "find", "needed"]

NEAR = 12
"""How many steps a function that a formula cannot do without may be behind its result."""


PLACES = 8
"""Into how many a value is taken apart at most."""


@dataclass(frozen=True)
class Found:
    """A match that can be written down.

    Parameters
    ----------
    rule, match
        What was found.
    operands
        Where the values of the match are read.
    inside
        Names of the values between them and the result.
    copies
        Names of values that hold what a value that is read holds, and its name.
    """

    rule: Rule
    match: Match
    operands: Mapping[str, Operand]
    inside: frozenset[str]
    copies: Mapping[str, str] = field(default_factory=dict)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The native values that are read."""
        return tuple(dict.fromkeys(operand.value for operand in self.operands.values()))

    def replacement(self, name: str) -> Replacement:
        """Return the edit."""
        names = self.inputs

        def build(e: Emitter, handles: Sequence[Any]) -> Handle:
            return self._emit(e, dict(zip(names, handles, strict=True)))

        note = {"rule": self.rule.name, "fidelity": "exact"}
        return Replacement(self.match.output, names, build, name, note)

    def _emit(self, e: Emitter, handles: Mapping[str, Handle]) -> Handle:
        rule, found = self.rule, self.match
        values = {
            name: arrange_operand(e, handles, operand, found.groups(_layout(rule, name)), found.dtype)
            for name, operand in self.operands.items()
        }
        result = lowered(rule, e, found, values)
        order = [atom for group in found.groups(rule.result) for atom in group]
        root = found.bound.root
        return laid_out(e, result, order, resolve(root.index), root.prim.shape)


@dataclass(frozen=True)
class Refused:
    """A match that is left as it is.

    Parameters
    ----------
    rule
        Its name.
    output
        Name of the value.
    reason
        Why, in a sentence.
    """

    rule: str
    output: str
    reason: str


def find(
    program: Program, rules: Sequence[Rule], target: str | None = None
) -> tuple[list[Found], list[Refused]]:
    """Return where rules fit, outermost first, none inside another, and where they had to be refused.

    Linear in the graph: a rule is tried only at values that are computed by a function that its formula may
    end with, and where the functions that it cannot do without are near.
    """
    prims = program.prims()
    needs = [(rule, needed(rule.formula), ending(rule.formula)) for rule in rules]
    near = Near(frozenset(head for _, heads, _ in needs for head in heads))
    matched = Matcher()
    found: list[Found] = []
    refused: list[Refused] = []
    inside: set[str] = set()
    declined: dict[str, set[str]] = {rule.name: set() for rule in rules}
    for name, prim in reversed(list(prims.items())):
        if name in inside or not _computes(prim):
            continue
        heads = near.behind(prim)
        own = frozenset(_heads(prim))
        for rule, functions, first in needs:
            if first.isdisjoint(own) or not functions <= heads or name in declined[rule.name]:
                continue
            tried = _tried(rule, name, prim, matched)
            if isinstance(tried, Found) and _is_one(program, tried):
                tried = None
            if isinstance(tried, Found) and (reason := _why_not(program, tried)) is not None:
                tried = Refused(rule.name, name, reason)
            if isinstance(tried, Found) and (reason := rule.declined(program, target)) is not None:
                declined[rule.name] |= tried.inside
                tried = Refused(rule.name, name, reason)
            if isinstance(tried, Found):
                found.append(tried)
                inside |= tried.inside
                break
            if tried is not None:
                refused.append(tried)
    return found, refused


def _is_one(program: Program, found: Found) -> bool:
    """Whether what a rule fits is one operator of the graph already."""
    return len(program.graph.region([found.match.output], found.inputs)) == 1


def _why_not(program: Program, found: Found) -> str | None:
    """Return why the edit would be none, or would save nothing, or None."""
    graph, prims = program.graph, program.prims()
    for name in (*graph.inputs, *graph.held):
        if name in found.inside and name not in graph.constants:
            return f"it is computed of {name}, too, which the formula does not name there"
    region = graph.region([found.match.output], (*found.inputs, *found.copies))
    gone: set[str] = set()
    for node in reversed(region):
        read = [x for output in node.outputs for x in graph.readers(output)]
        last = found.match.output in node.outputs
        kept = any(x.name not in gone for x in read) or any(v in graph.ends for v in node.outputs)
        if last or not kept:
            gone.add(node.name)
    steps = {n.name for n in region if any(v in prims and _computes(prims[v]) for v in n.outputs)}
    if len(steps) > 1 and len(steps & gone) <= 1:
        return "all that it is computed of is read elsewhere as well: nothing would be saved"
    return None


def _tried(rule: Rule, name: str, prim: Prim, matched: Matcher) -> Found | Refused | None:
    bound = matched(rule.formula, prim)
    if bound is None:
        return None
    fits = Match(name, prim.dtype or "float32", bound)
    try:
        reason = refused(rule, fits)
    except RuleError as error:
        reason = str(error)
    if reason is not None:
        return Refused(rule.name, name, reason)
    operands: dict[str, Operand] = {}
    terms = _values(rule, bound)
    if isinstance(terms, str):
        return Refused(rule.name, name, terms)
    for value, term in terms.items():
        operand = choose_operand(term, fits.groups(_layout(rule, value)), peel=False)
        if isinstance(operand, str):
            return Refused(rule.name, name, f"{value} is held by no tensor of the graph: {operand}")
        operands[value] = operand[0]
    copies = _copies(bound, {o.value for o in operands.values()})
    stop = {*copies, *(o.value for o in operands.values())}
    return Found(rule, fits, operands, _between(prim, stop), copies)


def _copies(bound: Bound, read: set[str]) -> dict[str, str]:
    """Return values that the graph computes again, and which of those that are read they are."""
    found: dict[str, str] = {}
    for first, again in bound.twins:
        a, b = first.prim, again.prim
        alike = a.shape == b.shape and a.dtype == b.dtype and resolve(first.index) == resolve(again.index)
        if alike and a.value in read and b.value is not None and b.value not in read:
            found[b.value] = a.value
    return found


def _layout(rule: Rule, value: str) -> str:
    return rule.layouts[value.partition(".")[0]]


def _values(rule: Rule, bound: Bound) -> dict[str, Read] | str:
    """Return the values that a rule is given, or why they cannot be taken apart."""
    found: dict[str, Read] = {}
    for value in rule.layouts:
        term = bound.terms.get(value)
        if term is None:
            continue
        assert isinstance(term, Read), "only values are bound"
        if value not in rule.apart:
            found[value] = term
            continue
        axis = bound.atoms(rule.apart[value])
        count = product(atom.size for atom in axis)
        if len(axis) != 1 or not count.static or int(count) > PLACES:
            return f"{value} is taken apart into {PLACES} at most; here there are {count}"
        for k in range(int(count)):
            one = substitute(term, {axis[0]: Affine(Size.of(k))})
            assert isinstance(one, Read)
            found[f"{value}.{k}"] = one
    return found


def _computes(prim: Prim) -> bool:
    """Whether a value is computed, and not merely moved, copied or cast."""
    if isinstance(prim.form, Map):
        return prim.form.fn not in ("identity", "cast")
    return not isinstance(prim.form, (*VIEWS, Leaf, Constant, Iota))


def _between(top: Prim, stop: set[str]) -> frozenset[str]:
    found: set[str] = set()
    seen: set[Prim] = {top}
    stack = [top]
    while stack:
        for x in stack.pop().inputs:
            if x in seen or x.value in stop:
                continue
            seen.add(x)
            if x.value is not None:
                found.add(x.value)
            stack.append(x)
    return frozenset(found)


def needed(pattern: Pattern) -> frozenset[str]:
    """Return the functions that a formula has in every alternative."""
    match pattern:
        case Choice(_, options):
            return frozenset.intersection(*(needed(p) for _, p in options))
        case Call(fn):
            own = {fn}
        case Fold(kind):
            own = {"sum" if kind == "mean" else kind}
        case Softmax():
            own = {"softmax"}
        case Sum() | Product() | _:
            own = set()
    return frozenset(own).union(*(needed(p) for p in parts_of(pattern)))


_FACTORS = frozenset({"add", "mul", "div", "neg", "reciprocal", "sqrt", "rsqrt", "pow", "sum"})
_TERMS = frozenset({"add", "sub", "neg", "mul", "div"})
_ANY = frozenset(POINTWISE | {"sum", "max", "min", "logsumexp", "softmax"})


def ending(pattern: Pattern) -> frozenset[str]:
    """Return the functions that a value which a formula fits may be computed by last.

    >>> from rewriter.rules.pattern import tensor
    >>> sorted(ending(tensor("x") + tensor("y")))
    ['add', 'div', 'mul', 'neg', 'sub']
    """
    match pattern:
        case Choice(_, options):
            return frozenset().union(*(ending(p) for _, p in options))
        case Call(fn):
            return frozenset({fn})
        case Softmax():
            return frozenset({"softmax"})
        case Fold(kind):
            return _FACTORS if kind == "mean" else frozenset({kind})
        case Product(parts) if parts:
            return _FACTORS.union(*(ending(part.base) for part in parts if len(parts) == 1))
        case Sum(parts) if parts:
            return _TERMS.union(*(ending(part) for part in parts if len(parts) == 1))
    return _ANY


class Near:
    """Which functions are computed at most `NEAR` steps behind a value."""

    def __init__(self, heads: frozenset[str]) -> None:
        self._heads = heads
        self._known: dict[Prim, dict[str, int]] = {}

    def behind(self, prim: Prim) -> frozenset[str]:
        """Return their names."""
        return frozenset(self._steps(prim))

    def _steps(self, top: Prim) -> dict[str, int]:
        stack = [top]
        while stack:
            prim = stack[-1]
            if prim in self._known:
                stack.pop()
                continue
            missing = [x for x in prim.inputs if x not in self._known]
            if missing:
                stack += missing
                continue
            self._known[prim] = self._own(prim)
            stack.pop()
        return self._known[top]

    def _own(self, prim: Prim) -> dict[str, int]:
        found: dict[str, int] = {}
        for x in prim.inputs:
            for head, steps in self._known[x].items():
                if steps < NEAR:
                    found[head] = min(found.get(head, NEAR), steps + 1)
        for head in _heads(prim):
            if head in self._heads:
                found[head] = 0
        return found


def _heads(prim: Prim) -> Iterable[str]:
    match prim.form:
        case Map(fn):
            return (fn,)
        case Reduce(fn):
            return (fn,)
        case Einsum():
            return ("sum",)
        case SoftmaxForm():
            return ("softmax",)
    return ()
