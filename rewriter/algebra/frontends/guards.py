"""Guards of weights against queries that see no key: spelled in many ways, of one form."""

from __future__ import annotations

import numpy as np

from rewriter.algebra.prims import (
    Constant,
    Einsum,
    Expand,
    Form,
    Map,
    Permute,
    Prim,
    Reduce,
    Reshape,
    Slice,
    Softmax,
    constant,
    pointwise,
)
from rewriter.algebra.sizes import ONE, product

__all__ = ["guarded", "is_number", "selected"]


def guarded(weights: Prim) -> Prim:
    """Return weights with zeros in rows without any visible key."""
    return pointwise("where", pointwise("isnan", weights), constant(0.0, weights.dtype), weights)


def selected(condition: Prim, a: Prim, b: Prim) -> Prim:
    """Return ``where(condition, a, b)``, in the form of `guarded` where it is a guard.

    Rows without a visible key are found by ``all(s == -inf)``, by ``not any(s != -inf)``, or by counting the
    entries that are not -inf. A condition that weights are infinite never holds.
    """
    if _never_holds(condition):
        return b
    if is_number(a, 0.0) and _finds_empty_rows(condition, b):
        return guarded(b)
    if is_number(b, 0.0) and _finds_empty_rows(pointwise("not", condition), a):
        return guarded(a)
    return pointwise("where", condition, a, b)


def _never_holds(condition: Prim) -> bool:
    """Whether the condition says that weights are infinite, which no weight is."""
    tested = _behind(condition)
    if tested.form == Map("and"):
        return any(map(_never_holds, tested.inputs))
    infinite = tested.form == Map("eq") and any(is_number(tested.inputs[1], n) for n in _INFINITIES)
    return (infinite or tested.form == Map("isinf")) and _is_finite(_behind(tested.inputs[0]))


def _is_finite(weights: Prim) -> bool:
    """Whether these are weights of a softmax, or those and zeros."""
    if weights.form == Map("where") and is_number(weights.inputs[1], 0.0):
        weights = _behind(weights.inputs[2])
    return isinstance(weights.form, Softmax) and not weights.form.log


def _finds_empty_rows(condition: Prim, weights: Prim) -> bool:
    softmax = _behind(weights)
    if not isinstance(softmax.form, Softmax) or softmax.form.log:
        return False
    axis, shape = softmax.form.axis, softmax.shape
    if condition.shape != (*shape[:axis], ONE, *shape[axis + 1 :]):
        return False
    tested = _in_all(condition, axis)
    if tested is None or tested.form != Map("eq") or not is_number(tested.inputs[1], _INFINITIES[1]):
        return False
    return _behind(tested.inputs[0]) is _behind(softmax.inputs[0])


def _in_all(prim: Prim, axis: int) -> Prim | None:
    """Return ``t`` if this says that ``t`` holds everywhere along the axis."""
    found, negated = _not(_behind(prim))
    if found.form == Map("gt") and negated and is_number(found.inputs[1], 0):
        reduced = _reduced(found.inputs[0], Einsum, axis)
    else:
        reduced = _reduced(found, Reduce("max" if negated else "min", (axis,)), axis)
    if reduced is None or not negated:
        return reduced
    inner, inverted = _not(reduced)
    return inner if inverted else None


def _not(prim: Prim) -> tuple[Prim, bool]:
    """Return what is negated, and whether it is; two negations are none, and ``!=`` negates ``==``."""
    negated = False
    while prim.form == Map("not"):
        prim, negated = _behind(prim.inputs[0]), not negated
    if prim.form == Map("ne"):
        return Prim(Map("eq"), prim.inputs, prim.shape, prim.dtype), not negated
    return prim, negated


def _reduced(prim: Prim, form: Form | type[Einsum], axis: int) -> Prim | None:
    """Return what is reduced along the axis alone, in the given way."""
    found = _behind(prim)
    if isinstance(found.form, Reshape):
        found = _behind(found.inputs[0])
    if isinstance(found.form, Einsum) and form is Einsum:
        (operand,) = found.form.operands[:1]
        alone = len(found.inputs) == 1 and found.form.output == (*operand[:axis], *operand[axis + 1 :])
        return _behind(found.inputs[0]) if alone else None
    return _behind(found.inputs[0]) if found.form == form else None


def _behind(prim: Prim) -> Prim:
    while prim.form in _SAME:
        prim = prim.inputs[0]
    return prim


def is_number(prim: Prim, number: float) -> bool:
    """Whether a tensor is one number everywhere."""
    while isinstance(prim.form, (Reshape, Permute, Expand, Slice)) or prim.form in _SAME:
        prim = prim.inputs[0]
    if not isinstance(prim.form, Constant) or product(prim.shape) != ONE:
        return False
    return float(np.asarray(prim.form.load()).reshape(())) == number


_INFINITIES = (float("inf"), -float("inf"))
_SAME = (Map("identity"), Map("cast"))
