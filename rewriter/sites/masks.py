"""What is proved of a mask: bands by comparing positions, or by evaluating it in full when it is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rewriter.algebra.index import Affine, Atom, resolve
from rewriter.algebra.sizes import ONE, ZERO, Size
from rewriter.algebra.term import Apply, Number, Position, Read, Term, depends_on
from rewriter.sites.formula import Axes
from rewriter.sites.scores import MASKING
from rewriter.sites.site import Band, EmptyRow, Facts
from rewriter.sites.values import Known

__all__ = ["Mask", "analyse"]

LARGEST = 1 << 27
"""Masks with more entries are not evaluated in full; their facts are what comparisons prove."""


@dataclass(frozen=True)
class Mask:
    """The outcome: facts, the bias that is left beside the band, and what an empty row gives."""

    facts: Facts
    rest: Term | None
    empty_row: EmptyRow


@dataclass(frozen=True)
class _Hidden:
    """Keys are hidden where ``visible`` is false, by ``fill``."""

    visible: Term
    fill: float


def analyse(bias: Term | None, axes: Axes, guarded: bool, known: Known) -> Mask:
    """Prove what can be proved of ``bias``, a term over the atoms of ``axes``."""
    if bias is None:
        return Mask(Facts(dense=True), None, "never")
    hidden, others = _summands(bias)
    band: Band | None = None
    rows_seen = True
    left: list[_Hidden] = []
    for part in hidden:
        conjuncts: list[Term] = []
        for conjunct in _conjuncts(part.visible):
            found = _prove(conjunct, axes, known)
            merged = None if found is None else _join(band, found)
            if merged is None:
                conjuncts.append(conjunct)
                continue
            band, rows_seen = merged.band, rows_seen and merged.rows_seen
        if conjuncts:
            left.append(_Hidden(_all(conjuncts), part.fill))
    extra: list[Term] = []
    for other in others:
        evaluated = _as_mask(other, axes, known)
        merged = None if evaluated is None else _join(band, evaluated[0])
        if evaluated is None or merged is None:
            extra.append(other)
            continue
        band, rows_seen = merged.band, rows_seen and merged.rows_seen
        hidden = [*hidden, _Hidden(Number(1.0), evaluated[1])]
    rest = _rest(left, extra)
    if band is not None and rows_seen:
        rows_seen = _always_sees(band, axes)
    keyed = frozenset(axes.keys) | frozenset(axes.batch)
    padding = bool(left) and not extra and all(depends_on(part.visible) <= keyed for part in left)
    whole = (rest is not None or not rows_seen) and any(np.isfinite(part.fill) for part in hidden)
    facts = Facts(
        band=band,
        only_band=band is not None and rest is None and not whole,
        key_padding=padding,
        dense=band is None and rest is None,
    )
    empty = _empty_row(hidden, left, extra, guarded, rows_seen, axes, known)
    # a band that hides by a finite number and is not alone cannot be taken out: a row in which
    # everything is hidden averages over all keys, those outside of the band too
    taken_out = (band is not None or rest is None) and not whole
    return Mask(facts, rest if taken_out else bias, empty)


@dataclass(frozen=True)
class _Proof:
    """A proved conjunct: a band, or (None) no restriction at all."""

    band: Band | None
    rows_seen: bool


def _summands(bias: Term) -> tuple[list[_Hidden], list[Term]]:
    hidden: list[_Hidden] = []
    others: list[Term] = []
    stack = [bias]
    while stack:
        at = stack.pop()
        match at:
            case Apply("add", (a, b)):
                stack.extend((b, a))
            case Apply("where", (condition, Number(fill), rest)) if fill <= MASKING:
                hidden.append(_Hidden(_not(condition), fill))
                stack.append(rest)
            case Apply("where", (condition, rest, Number(fill))) if fill <= MASKING:
                hidden.append(_Hidden(condition, fill))
                stack.append(rest)
            case Apply("mul", (Apply("sub", (Number(1.0), seen)), Number(fill))) if (
                fill <= MASKING and _is_bool(seen)
            ):
                hidden.append(_Hidden(seen, fill))
            case Number(0.0):
                pass
            case _:
                others.append(at)
    return hidden, others


def _is_bool(term: Term) -> bool:
    match term:
        case Read(prim, _):
            return prim.dtype == "bool"
        case Apply(_, _, dtype):
            return dtype == "bool"
        case _:
            return False


def _not(term: Term) -> Term:
    match term:
        case Apply("not", (inner,)):
            return inner
        case Apply("eq", (inner, Number(0.0))):
            return inner
        case _:
            return Apply("not", (term,), "bool")


def _conjuncts(visible: Term) -> list[Term]:
    match visible:
        case Apply("and", args):
            return [c for arg in args for c in _conjuncts(arg)]
        case Apply("not", (Apply("or", args),)):
            return [c for arg in args for c in _conjuncts(_not(arg))]
        case Apply("not", (Apply("not", (inner,)),)):
            return _conjuncts(inner)
        case Number(value) if value:
            return []
        case _:
            return [visible]


def _all(conjuncts: Sequence[Term]) -> Term:
    result = conjuncts[0]
    for other in conjuncts[1:]:
        result = Apply("and", (result, other), "bool")
    return result


def _rest(left: Sequence[_Hidden], extra: Sequence[Term]) -> Term | None:
    terms: list[Term] = [Apply("where", (p.visible, Number(0.0), Number(p.fill)), None) for p in left]
    terms.extend(extra)
    if not terms:
        return None
    result = terms[0]
    for other in terms[1:]:
        result = Apply("add", (result, other), None)
    return result


# a comparison of positions


def _prove(conjunct: Term, axes: Axes, known: Known) -> _Proof | None:
    spread = _distance(conjunct)
    if spread is not None:
        sides = [_as_band(d, axes) for d in spread]
        merged = _intersect(*sides) if None not in sides else None
        if merged is not None:
            return _Proof(merged, True)
    compared = _comparison(conjunct)
    if compared is not None:
        if _never_positive(compared):
            return _Proof(None, True)
        band = _as_band(compared, axes)
        if band is not None:
            return _Proof(band, True)
    visible = _evaluate(conjunct, axes, known)
    return None if visible is None else _proof_of(visible.astype(bool))


def _distance(term: Term) -> tuple[Affine, Affine] | None:
    """Return two differences, both <= 0 where the term ``|d| <= w`` holds."""
    match term:
        case Apply(("le" | "lt") as fn, (Apply("abs", (inner,)), Number(width))) if width == int(width):
            between = _affine(inner)
        case _:
            return None
    if between is None:
        return None
    bound = Affine(Size.of(int(width) - (fn == "lt")))
    return between.minus(bound), between.times(Size.of(-1)).minus(bound)


def _comparison(term: Term) -> Affine | None:
    """Return ``d`` such that the term says ``d <= 0``."""
    negated = isinstance(term, Apply) and term.fn == "not"
    inner = term.args[0] if negated and isinstance(term, Apply) else term
    if not isinstance(inner, Apply) or inner.fn not in ("le", "lt", "ge", "gt"):
        return None
    a, b = (_affine(arg) for arg in inner.args)
    if a is None or b is None:
        return None
    fn = {"le": "gt", "lt": "ge", "ge": "lt", "gt": "le"}[inner.fn] if negated else inner.fn
    difference = a.minus(b) if fn in ("le", "lt") else b.minus(a)
    return difference if fn in ("le", "ge") else Affine(difference.start + 1, difference.terms)


def _never_positive(difference: Affine) -> bool:
    """Whether a difference of positions is <= 0 wherever the atoms stand: the comparison always holds."""
    highest = difference.start
    for atom, stride in difference.terms:
        if stride.at_least(0):
            highest = highest + stride * (atom.size - 1)
        elif not (-stride).at_least(0):
            return False
    return (-highest).at_least(0)


def _affine(term: Term) -> Affine | None:
    match term:
        case Position(value):
            return resolve((value,))[0]
        case Number(value) if value == int(value):
            return Affine(Size.of(int(value)))
        case Apply(("add" | "sub") as fn, (a, b)):
            x, y = _affine(a), _affine(b)
            if x is None or y is None:
                return None
            return x.plus(y) if fn == "add" else x.minus(y)
        case Apply("neg", (a,)):
            x = _affine(a)
            return None if x is None else x.times(Size.of(-1))
        case _:
            return None


def _position(atoms: Sequence[Atom]) -> Affine:
    total, stride = Affine(ZERO), ONE
    for atom in reversed(atoms):
        total, stride = total.plus(Affine.of(atom).times(stride)), stride * atom.size
    return total


def _as_band(difference: Affine, axes: Axes) -> Band | None:
    """Read ``difference <= 0`` as a band."""
    ahead = _position(axes.keys).minus(_position(axes.queries))
    if difference.terms == ahead.terms:
        offset = -difference.start  # key - query <= offset
        return Band(offset, None, 0)
    if difference.terms == ahead.times(Size.of(-1)).terms:
        bound = difference.start.known()  # key - query >= bound
        return None if bound is None or bound > 0 else Band(ZERO, -bound, None)
    return None


def _join(band: Band | None, proof: _Proof) -> _Proof | None:
    """Return both together, or None when they are not one band."""
    merged = _intersect(band, proof.band)
    if merged is None and (band is not None or proof.band is not None):
        return None
    return _Proof(merged, proof.rows_seen)


def _intersect(a: Band | None, b: Band | None) -> Band | None:
    """Return the band that both describe, or None when that is not one band."""
    if a is None or b is None:
        return a or b
    if a.right is None and b.right is not None:
        a, b = b, a
    shift = (b.offset - a.offset).known()
    if shift is None:
        return None
    left = [x for x in (a.left, None if b.left is None else b.left - shift) if x is not None]
    right = [x for x in (a.right, None if b.right is None else b.right + shift) if x is not None]
    merged = Band(a.offset, min(left, default=None), min(right, default=None))
    return merged if (merged.left is None or merged.left >= 0) else None


def _always_sees(band: Band, axes: Axes) -> bool:
    """Whether every query sees its own position (shifted by the offset), or an earlier key."""
    queries, keys = axes.size("queries"), axes.size("keys")
    low = band.offset + (band.right or 0) if band.right is not None else None
    if band.right is not None and low is not None and not low.at_least(0):
        return False
    if band.left is None:
        return True
    return (keys - queries - band.offset + band.left).at_least(0)


# full evaluation


def _evaluate(term: Term, axes: Axes, known: Known) -> np.ndarray | None:
    """Return the term as ``[queries, keys]`` if it depends on nothing else and is known."""
    rows, columns = axes.size("queries").known(), axes.size("keys").known()
    if rows is None or columns is None or rows * columns > LARGEST:
        return None
    if not depends_on(term) <= frozenset(axes.queries) | frozenset(axes.keys):
        return None
    if not known.closed_term(term):
        return None
    full = known.array(term, [*axes.queries, *axes.keys])
    return None if full is None else full.reshape(rows, columns)


def _proof_of(visible: np.ndarray) -> _Proof | None:
    rows_seen = bool(visible.any(axis=1).all())
    if visible.all():
        return _Proof(None, rows_seen)
    if not visible.any():
        return None
    ahead = np.arange(visible.shape[1])[None, :] - np.arange(visible.shape[0])[:, None]
    right, left = int(ahead[visible].max()), -int(ahead[visible].min())
    if np.array_equal(visible, ahead <= right):
        return _Proof(Band(Size.of(right), None, 0), rows_seen)
    if np.array_equal(visible, ahead >= -left):
        return _Proof(Band(ZERO, left, None), rows_seen) if left >= 0 else None
    if np.array_equal(visible, (ahead <= right) & (ahead >= -left)):
        if right >= 0 and left >= 0:
            return _Proof(Band(ZERO, left, right), rows_seen)
        return _Proof(Band(Size.of(right), left + right, 0), rows_seen)
    return None


def _as_mask(term: Term, axes: Axes, known: Known) -> tuple[_Proof, float] | None:
    """Return what a known bias hides, and by which number, if it does nothing else."""
    full = _evaluate(term, axes, known)
    if full is None or np.isnan(full).any():
        return None
    hiding = full <= MASKING
    if not np.all(hiding | (full == 0)):
        return None
    if not hiding.any():
        return _Proof(None, True), 0.0
    proof = _proof_of(~hiding)
    return None if proof is None else (proof, float(full[hiding].min()))


def _empty_row(
    hidden: Sequence[_Hidden],
    left: Sequence[_Hidden],
    extra: Sequence[Term],
    guarded: bool,
    rows_seen: bool,
    axes: Axes,
    known: Known,
) -> EmptyRow:
    finite = [t for t in extra if _always_finite(t, axes, known)]
    if rows_seen and not left and len(finite) == len(extra):
        return "never"
    if hidden and len(finite) == len(extra) and all(np.isfinite(part.fill) for part in hidden):
        return "uniform"
    return "zero" if guarded else "nan"


def _always_finite(term: Term, axes: Axes, known: Known) -> bool:
    """Whether a bias that hides nothing is proved: known and above `MASKING` everywhere."""
    if not known.closed_term(term):
        return False
    atoms = [*axes.batch, *axes.heads, *axes.groups, *axes.queries, *axes.keys]
    atoms = [a for a in atoms if a in depends_on(term)]
    if any(not a.size.static for a in atoms) or np.prod([int(a.size) for a in atoms]) > LARGEST:
        return False
    full = known.array(term, atoms)
    return full is not None and bool(np.all(full > MASKING))
