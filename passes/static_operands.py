"""Operands that no input changes are computed once: learned queries, position biases, normalised weights.

    before   attention(latents · W_q, k, v), softmax(scores + table[places]), conv(x, (W - mean) / deviation)
    after    attention(queries, k, v), softmax(scores + bias), conv(x, weight)

Learned queries of latent attention, seeds and pooling heads; weights that depend on positions alone; keys and
values of a source that is a parameter; gathered tables of relative positions; weights of convolutions and
projections that are standardised or normalised at every call.
Refused: values that depend on sizes of inputs; constants that would be much larger than what they are
computed from; large ones of weights that something else reads, too. `exact` leaves the rule out for ONNX,
whose runtimes compute constants when they load a model. What is only a view of a constant is one outside
attention, and passed over.

Source: Jaegle et al.: Perceiver, 2021, section 3.1 (learned queries).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rewriter.algebra.sizes import ONE, Size, product
from rewriter.algebra.term import VIEWS
from rewriter.program.program import Insertion
from rewriter.rules.graph_rule import Change, Declined, GraphRule

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle
    from rewriter.program.graph import Node
    from rewriter.program.program import Program
    from rewriter.sites.origin import Origin

__all__ = ["StaticOperands"]

SMALL = 1 << 20
"""Bytes of a constant below which its size is not looked at."""

GROWTH = 4
"""A larger one may take this many times the bytes of what it is computed from."""


class StaticOperands(GraphRule):
    """What no input changes, as a constant. Exact: the graph's own numbers are kept."""

    name = "static-operands"
    looks_for: ClassVar[str] = "operands and weights that are computed from constants alone"
    pays: ClassVar[frozenset[str]] = frozenset({"torch", "triton"})

    def changes(self, program: Program) -> tuple[Sequence[Change], Sequence[Declined]]:
        """Return one change for each value that is computed anew at every call."""
        from rewriter.sites.origin import Origin

        origin = Origin(program.graph, program.prims())
        changes: list[Change] = []
        declined: list[Declined] = []
        inside = {name for site in program.sites for name in (*site.region, site.anchor)}
        for name, attended in _static(program, origin, inside).items():
            prim = program.prims()[name]
            region = program.graph.region([name], [])
            sources = _sources(program, region)
            if not sources or product(prim.shape) == ONE or not (attended or _computes(program, region)):
                continue
            reason = _why_not(program, prim.shape, sources, region)
            if reason is None:
                changes.append(_change(program, name, region, sources))
            else:
                declined.append(Declined(name, reason))
        return changes, declined


def _static(program: Program, origin: Origin, inside: Collection[str]) -> dict[str, bool]:
    """Return what is computed from constants alone, as far as that goes, and whether attention reads it."""
    graph, prims = program.graph, program.prims()

    def static(name: str | None) -> bool:
        if name is None or name not in prims or name in graph.constants or graph.producer(name) is None:
            return False
        return not origin.varies(prims[name]) and not (prims[name].dtype or "int").startswith("int")

    found: dict[str, bool] = {}
    for node in graph.nodes:
        read = [v for v in node.inputs if v is not None and static(v)]
        if read and not all(static(v) for v in node.outputs):
            found |= {v: node.name in inside or found.get(v, False) for v in read}
    return found


def _computes(program: Program, region: Sequence[Node]) -> bool:
    """Whether anything but views is computed."""
    made = (program.prims().get(v) for node in region for v in node.outputs)
    return any(prim is not None and not isinstance(prim.form, VIEWS) for prim in made)


def _sources(program: Program, region: Sequence[Node]) -> list[str]:
    """Return the constants that a region reads."""
    read = dict.fromkeys(v for node in region for v in node.inputs if v is not None)
    return [v for v in read if v in program.graph.constants]


def _why_not(
    program: Program, shape: Sequence[Size], sources: Sequence[str], region: Sequence[Node]
) -> str | None:
    sizes = [n.known() for n in shape]
    if program.graph.boundary(region) or any(n is None for n in sizes):
        return "it depends on the sizes of inputs"
    count = int(np.prod([n for n in sizes if n is not None], dtype=np.int64))
    behind = sum(_count(program, name) for name in sources)
    if 4 * count <= SMALL:
        return None
    if count > GROWTH * behind:
        return f"it would be a constant of {count} numbers, computed from {behind}"
    gone = {node.name for node in region}
    if any(node.name not in gone for name in sources for node in program.graph.readers(name)):
        return "what it is computed from is read elsewhere, too, and would be held twice"
    return None


def _count(program: Program, name: str) -> int:
    shape = program.graph.values[name].shape or ()
    return int(np.prod([n.known() or 1 for n in shape], dtype=np.int64))


def _change(program: Program, name: str, region: Sequence[Node], sources: Sequence[str]) -> Change:
    (known,) = program.extract([], [name])({})
    value = program.graph.values[name]

    def build(e: Emitter, handles: Sequence[Any]) -> Handle:
        return e.constant(known, value.dtype or str(known.dtype))

    source = sources[0]
    shape = program.graph.values[source].shape or ()
    note = {"rule": StaticOperands.name, "fidelity": "exact"}
    edit = Insertion(
        f"{name.rpartition('/')[2]}.known", (source,), (shape,), build, instead=name, metadata=note
    )
    return Change(name, (edit,), f"a constant for {len(region)} operators")
