"""Softplus that is spelled out becomes one operator, which large values do not overflow.

    before   log(1 + exp(x))
    after    softplus(x)

Refused: nothing; every target has the operator.

Source: Dugas et al.: Incorporating Second-Order Functional Knowledge, 2000, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from rewriter.rules import Match, Rule, call, tensor

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle

__all__ = ["Softplus"]

_x = tensor("x")


class Softplus(Rule):
    """Softplus as one operator. Exact."""

    name = "softplus"
    formula = call("log", 1 + call("exp", _x))
    layouts: ClassVar = {"x": "..."}
    pays = frozenset({"torch", "triton"})  # ONNX Runtime's operator is slower than its parts

    def lower(self, e: Emitter, match: Match, values: Mapping[str, Handle]) -> Handle:
        """Emit ``softplus(x)``."""
        return e.map("softplus", values["x"])
