"""Batch norms and parallel convolutions become one convolution.

    before   norm(conv(x, w)), or norm(conv(x, w1)) + norm(conv(x, w2)) + norm(x)
    after    conv(x, weight, bias)

The statistics are those of inference, fixed in the model. A smaller kernel gets zeros around it.
Refused: weights that are no constants; a value inside that is read elsewhere; kernels whose places do not
coincide.

Source: Ding et al.: RepVGG, 2021, section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from rewriter.lower.errors import EmitError
from rewriter.program.program import Insertion
from rewriter.rules.graph_rule import Change, Declined, GraphRule

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle
    from rewriter.program.program import Program
    from rewriter.rules.convolutions import Whole

__all__ = ["Reparameterize"]


class Reparameterize(GraphRule):
    """Batch norms and parallel convolutions as one convolution. Exact."""

    name = "reparameterize"
    looks_for: ClassVar[str] = "norm(conv(x)) + norm(conv(x)) + norm(x), with fixed statistics"

    def changes(self, program: Program) -> tuple[Sequence[Change], Sequence[Declined]]:
        """Return one change for each convolution that takes in other operators."""
        from rewriter.rules.convolutions import as_convolution

        found: list[Change] = []
        inside: set[str] = set()
        for node in reversed(program.graph.nodes):
            output = node.outputs[0]
            whole = None if node.name in inside else as_convolution(program, output)
            if whole is not None and whole.operators > 1:
                region = program.graph.region([output], [whole.settings.x])
                inside.update(n.name for n in region)
                found.append(_change(program, output, whole))
        return found[::-1], []


def _change(program: Program, output: str, whole: Whole) -> Change:
    values = program.graph.values
    x = whole.settings.x
    before, after, dtype = values[x].shape or (), values[output].shape or (), values[x].dtype or "float32"

    def build(e: Emitter, handles: Sequence[Handle]) -> Handle:
        weight, bias = e.constant(whole.weight, dtype), e.constant(whole.bias, dtype)
        settings = {
            key: getattr(whole.settings, key) for key in ("strides", "padding", "dilations", "groups")
        }
        made = e.standard("convolution", handles[0], weight, bias, shape=after, **settings)
        if made is None:
            raise EmitError("the target has no convolution with this padding")
        return made

    edit = Insertion(f"{output}.convolution", (x,), (before,), build, instead=output)
    note = {"rule": Reparameterize.name, "fidelity": "exact"}
    gain = f"1 operator for {whole.operators}"
    return Change(output, (replace(edit, metadata=note),), gain)
