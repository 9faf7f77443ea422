"""Hard swish that is spelled out becomes one operator.

    before   x · min(max(x + 3, 0), 6) / 6
    after    hard_swish(x)

Refused: a target without the operator (ONNX before opset 14).

Source: Howard et al.: Searching for MobileNetV3, 2019, section 5.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from rewriter.lower.errors import EmitError
from rewriter.rules import Match, Rule, any_of, call, maximum, tensor

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle

__all__ = ["HardSwish"]

_x = tensor("x")
_above, _below = maximum(_x + 3, 0), call("minimum", _x + 3, 6)
_clipped = any_of("", above_first=call("minimum", _above, 6), below_first=maximum(_below, 0))
_share = maximum(call("minimum", _x / 6 + 0.5, 1), 0)
_other = call("minimum", maximum(_x / 6 + 0.5, 0), 1)


class HardSwish(Rule):
    """Hard swish as one operator. Exact."""

    name = "hard-swish"
    formula = any_of("", clipped=_x * _clipped / 6, share=_x * _share, other=_x * _other)
    layouts: ClassVar = {"x": "..."}

    def lower(self, e: Emitter, match: Match, values: Mapping[str, Handle]) -> Handle:
        """Emit ``hard_swish(x)``."""
        found = e.standard("hard_swish", values["x"])
        if found is None:
            raise EmitError("HardSwish is an operator from opset 14 on")
        return found
