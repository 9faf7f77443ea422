"""Formulas that gates and fusion blocks share: what finds a block, and what rewrites it, reads the same.

``x`` and ``y`` are feature maps, ``w`` and ``z`` what weighs them, ``n`` runs over branches.
"""

from __future__ import annotations

from rewriter.rules.pattern import (
    Pattern,
    any_of,
    axis,
    call,
    constant,
    maximum,
    mean,
    number,
    sigmoid,
    softmax,
    stack,
    sum_,
    tanh,
    tensor,
)

__all__ = [
    "BLEND",
    "BRANCH_SOFTMAX",
    "BRANCH_SUM",
    "GATED",
    "GATED_RESIDUAL",
    "PRODUCT",
    "SQUEEZE_EXCITE",
    "SUM",
]

_x, _y, _z, _w, _n = tensor("x"), tensor("y"), tensor("z"), tensor("w"), axis("n")


def _squashed(z: Pattern, softmax_too: bool = True) -> Pattern:
    """Return what makes a gate of a number: a curve that saturates, or a softmax."""
    clipped = maximum(call("minimum", z + 3.0, 6.0), 0.0) * (1 / 6)
    raised = call("minimum", maximum(z + 3.0, 0.0), 6.0) * (1 / 6)
    lowered = call("minimum", maximum(z * (1 / 6) + 0.5, 0.0), 1.0)
    hard = any_of("", clipped=clipped, raised=raised, lowered=lowered)
    curves = {"sigmoid": sigmoid(z), "hard_sigmoid": hard, "tanh": tanh(z)}
    return any_of("squash", **curves, **({"softmax": softmax(z, axis("p"))} if softmax_too else {}))


GATED = any_of("", gated=_x * _squashed(_z), kept=_x * (1.0 + _squashed(_z)))
"""A gate: ``x · squash(z)``, or ``x · (1 + squash(z))``, which keeps the map as it is beside it."""


def _biased(product: Pattern, name: str) -> Pattern:
    return any_of("", biased=product + constant(name), plain=product)


_k, _c, _p = axis("k"), axis("c"), axis("p")
_reduced = _biased(sum_(mean(_x, _p) * constant("reduce"), _c), "b1")
_hidden = any_of(
    "act",
    relu6=call("minimum", maximum(_reduced, 0.0), 6.0),
    relu=maximum(_reduced, 0.0),
    silu=_reduced * sigmoid(_reduced),
)

SQUEEZE_EXCITE = _x * _squashed(_biased(sum_(_hidden * constant("expand"), _k), "b2"), softmax_too=False)
"""A channel gate of the mean over places: ``x · squash(act(mean · W₁ + b₁) · W₂ + b₂)``."""

PRODUCT = _x * _z
"""A gate that nothing squashes."""

SUM = _x + _z
"""Something of few axes that is added everywhere."""

_alpha = any_of("", one=number("alpha"), several=constant("alpha"))

GATED_RESIDUAL = _x + tanh(_alpha) * _z
"""A branch that a learned number lets in: ``x + tanh(alpha) · z``."""

_between = any_of("", apart=_y * (1.0 - _w) + _x * _w, together=_y + _w * (_x - _y))
_around = _y * (1.0 - _w) + _x * (1.0 + _w)

BLEND = any_of("total", two=2.0 * _between, one=_between, around=_around)
"""Between two maps: ``x · w + y · (1 - w)``, or twice that, or ``x · (1 + w) + y · (1 - w)``."""

BRANCH_SUM = sum_(stack("x", _n), _n)
"""The sum of maps that are stacked first."""

BRANCH_SOFTMAX = sum_(_x * softmax(tensor("a"), _n), _n, kept=True)
"""Between several maps: ``sum over n of x[n] · softmax(a)[n]``."""
