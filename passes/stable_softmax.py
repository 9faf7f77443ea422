"""Softmax that is spelled out becomes one operator, which large values do not overflow.

    before   exp(x) / sum(exp(x)), or the same of x - max(x)
    after    softmax(x)

Refused: a sum over part of an axis of the result, or over several.

Source: Bridle: Probabilistic Interpretation of Feedforward Classification Network Outputs, 1990, equation 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from rewriter.rules import Match, Rule, any_of, axis, call, max_, sum_, tensor

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle

__all__ = ["StableSoftmax"]

_x, _d = tensor("x"), axis("d")
_powers, _shifted = call("exp", _x), call("exp", _x - max_(_x, _d))


class StableSoftmax(Rule):
    """Softmax as one operator. Exact."""

    name = "stable-softmax"
    formula = any_of("", shifted=_shifted / sum_(_shifted, _d), plain=_powers / sum_(_powers, _d))
    layouts: ClassVar = {"x": "..."}

    def refuse(self, match: Match) -> str | None:
        """Refuse what is no axis of the result."""
        return None if match.axis("d") is not None else "the sum is over no axis of the result"

    def lower(self, e: Emitter, match: Match, values: Mapping[str, Handle]) -> Handle:
        """Emit ``softmax(x)``."""
        at = match.axis("d")
        assert at is not None, "it is refused"
        return e.softmax(values["x"], at)
