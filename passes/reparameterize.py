"""Batch norms and parallel convolutions become one convolution, batch norms of a projection part of it.

    before   norm(conv(x, w)), conv(norm(x), w), norm(conv(x, w1)) + norm(conv(x, w2)) + norm(x); norm(x · W)
    after    conv(x, weight, bias); x · weight + bias

The statistics are those of inference, fixed in the model; a norm may be spelled out as factors and terms of
channels. A smaller kernel gets zeros around it.
Refused: weights that are no constants, or that something else reads, too; a value inside that is read
elsewhere; kernels whose places do not coincide; a norm before a convolution that pads, for the padding is not
normalised.

Source: Ding et al.: RepVGG, 2021, section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from rewriter.lower.errors import EmitError
from rewriter.program.program import Insertion
from rewriter.rules.graph_rule import Change, Declined, GraphRule
from rewriter.rules.norms import Normed, normed
from rewriter.rules.projections import emit_projection

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle
    from rewriter.program.program import Program
    from rewriter.rules.convolutions import Whole

__all__ = ["Reparameterize"]

_NOTE = {"rule": "reparameterize", "fidelity": "exact"}


class Reparameterize(GraphRule):
    """Batch norms as part of weights, parallel convolutions as one. Exact."""

    name = "reparameterize"
    looks_for: ClassVar[str] = "norm(conv(x)) + norm(conv(x)) + norm(x), conv(norm(x)), norm(x · W)"

    def changes(self, program: Program) -> tuple[Sequence[Change], Sequence[Declined]]:
        """Return one change for each convolution that takes in other operators."""
        from rewriter.rules.convolutions import as_convolution

        found: list[Change] = []
        inside: set[str] = set()
        for node in reversed(program.graph.nodes):
            if node.name in inside:
                continue
            output = node.outputs[0]
            whole = as_convolution(program, output)
            if whole is not None and whole.operators > 1:
                found.append(_change(program, output, whole))
                inside |= _between(program, output, whole.settings.x)
            elif (projected := normed(program, output)) is not None:
                found.append(_projected(program, projected))
                inside |= _between(program, output, projected.projection.source)
        return found[::-1], []


def _between(program: Program, output: str, source: str) -> set[str]:
    return {node.name for node in program.graph.region([output], [source])}


def _projected(program: Program, one: Normed) -> Change:
    from rewriter.demand.selection import replayed

    source, dtype = one.projection.source, one.projection.dtype

    def build(e: Emitter, handles: Sequence[Handle]) -> Handle:
        return replayed(e, emit_projection(e, handles[0], one.weight, one.bias, dtype), one.views)

    name = f"{one.output.rpartition('/')[2]}.projection"
    shapes = (program.prims()[source].shape,)
    edit = Insertion(name, (source,), shapes, build, instead=one.output, metadata=_NOTE)
    return Change(one.output, (edit,), f"{one.bias.size} norms are part of the weights")


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

    edit = Insertion(f"{output}.convolution", (x,), (before,), build, instead=output, metadata=_NOTE)
    return Change(output, (edit,), f"1 operator for {whole.operators}")
