"""A gate between two maps becomes one interpolation.

    before   x · w + y · (1 - w), or y + w · (x - y); or twice that
    after    lerp(y, x, w)

Of 11 transfers of a map between memory and processor 4 remain. Attentional feature fusion and
complementary gates are this; x · (1 + t) + y · (1 - t) is lerp(y, x, 1 + t) + y.
Refused: maps of different axes; in ONNX, which has no such operator, weights that are smaller than the maps,
and the last kind: written as y + w · (x - y) they take as long as before, or longer.

Source: Dai, Gieseke, Oehmcke, Wu, Barnard: Attentional Feature Fusion, 2021, equation 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from rewriter.algebra.prims import Map
from rewriter.algebra.term import depends_on
from rewriter.blocks.formulas import BLEND
from rewriter.blocks.weighing import between
from rewriter.lower.errors import EmitError
from rewriter.rules import Match, Rule

if TYPE_CHECKING:
    from rewriter.algebra.prims import Prim
    from rewriter.lower.emitter import Emitter, Handle

__all__ = ["Blend"]


def _is_one(x: Prim) -> bool:
    """Whether a sum is one operator with the products in it."""
    return x.form == Map("add") and any(p.form == Map("mul") and p.value is None for p in x.inputs)


class Blend(Rule):
    """A gate between two maps as one operator. Exact."""

    name = "blend"
    formula = BLEND
    layouts: ClassVar = {"x": "...", "y": "...", "w": "..."}

    def refuse(self, match: Match) -> str | None:
        """Refuse what is no gate between two maps of one size."""
        every = frozenset(match.bound.result)
        for name in ("x", "y"):
            if depends_on(match.bound.terms[name]) != every:
                return f"{name} is not as large as the result: there is little to save"
        if match.label("total") == "two" and any(map(_is_one, match.bound.root.prim.inputs)):
            return "it is one interpolation already, and twice that"
        return None

    def lower(self, e: Emitter, match: Match, values: Mapping[str, Handle]) -> Handle:
        """Emit the interpolation."""
        x, y, w = values["x"], values["y"], values["w"]
        total = match.label("total")
        one = e.constant(1.0, match.dtype)
        w = e.map("add", w, one) if total == "around" else w
        found = between(e, y, x, w)
        if found is None:
            if total == "around" or tuple(e.shape(w)) != tuple(e.shape(x)):
                raise EmitError("without an operator for interpolation it is no faster")
            found = e.map("add", y, e.map("mul", w, e.map("sub", x, y)))
        match total:
            case "around":
                return e.map("add", found, y)
            case "two":
                return e.map("mul", found, e.constant(2.0, match.dtype))
        return found
