"""Computations in the bodies of loops that are the same in every run, moved in front of the loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count

import onnx
import onnx_ir as ir

from rewriter.algebra.frontends.onnx_loops import State, is_copy, is_shape, may_fail, states
from rewriter.program.onnx_parts import standard_opset
from rewriter.program.onnx_version import settle_initializers

__all__ = ["hoisted"]

_STANDARD = ("", "ai.onnx")


def hoisted(model: ir.Model) -> tuple[ir.Model, int]:
    """Return a copy with what does not change from run to run in front of its loop; it shares the weights.

    That is what is computed from values outside of the body, and from states that every run hands on as they
    are. What constants alone decide stays: runtimes compute it when they load a model. So do operators that
    are random, that are of another domain, or that have bodies themselves: a branch may never be taken. Nor
    may a loop: what looks values up, or divides whole numbers, and could fail then, stays, too.

    Parameters
    ----------
    model
        The model; it is not changed.

    Returns
    -------
    tuple
        The copy, and how many nodes have been moved.
    """
    made = model.clone()
    mover = _Mover(standard_opset(made), _names(made.graph))
    mover.visit(made.graph)
    settle_initializers(made)
    return made, mover.moved


def _names(graph: ir.Graph) -> set[str]:
    values = [*graph.inputs, *graph.initializers.values()]
    nodes = list(ir.traversal.RecursiveGraphIterator(graph))
    found = {n.name for n in nodes} | {v.name for v in values} | {v.name for n in nodes for v in n.outputs}
    for node in nodes:
        for body in _bodies(node):
            found |= {v.name for v in (*body.inputs, *body.initializers.values())}
    return {name for name in found if name}


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


@dataclass
class _Mover:
    """Moves nodes, innermost loops first.

    Parameters
    ----------
    opset
        Of the standard operators.
    taken
        Names that are in use.
    moved
        How many nodes have been moved.
    """

    opset: int
    taken: set[str]
    moved: int = 0
    _calm: dict[str, bool] = field(default_factory=dict)

    def visit(self, graph: ir.Graph) -> None:
        """Move what can be moved out of all loops of a graph and of its inner graphs."""
        for node in list(graph):
            for body in _bodies(node):
                self.visit(body)
                if (found := _states(node)) is not None:
                    self._empty(graph, node, body, found)

    def _empty(self, graph: ir.Graph, loop: ir.Node, body: ir.Graph, found: Iterable[State]) -> None:
        same = _unchanged(loop, body, found)
        fixed = self._fixed(body, same)
        for node in _needed(fixed, body):
            for at, value in enumerate(node.inputs):
                if value in same:
                    node.replace_input_with(at, same[value])
                elif value is not None and value.is_initializer() and value.graph is body:
                    self._outwards(graph, body, value)
            body.remove(node)
            self._rename(node)
            graph.insert_before(loop, [node])
            self.moved += 1

    def _fixed(self, body: ir.Graph, same: Mapping[ir.Value, ir.Value]) -> dict[ir.Node, bool]:
        """Return the nodes that compute the same in every run, and whether more than constants decide it."""
        found: dict[ir.Node, bool] = {}
        varies = {v for v in body.inputs if v not in same}
        for node in body:
            read = [v for v in node.inputs if v is not None]
            stays = any(v in varies for v in read) or any(v.is_graph_output() for v in node.outputs)
            if stays or not self._may_move(node) or _may_fail(node):
                varies.update(node.outputs)
                continue
            decided = {p: found[p] for v in read if (p := v.producer()) is not None and p in found}
            found[node] = any(decided.values()) or any(
                v.producer() not in decided and not v.is_initializer() for v in read
            )
        return found

    def _may_move(self, node: ir.Node) -> bool:
        """Whether an operator is a standard one that always gives the same."""
        if node.domain not in _STANDARD or any(True for _ in _bodies(node)):
            return False
        if node.op_type not in self._calm:
            try:
                schema = onnx.defs.get_schema(node.op_type, self.opset)
            except onnx.defs.SchemaError:
                self._calm[node.op_type] = False
            else:
                known = getattr(schema, "node_determinism", None)  # not in onnx's stubs
                self._calm[node.op_type] = known == onnx.defs.OpSchema.NodeDeterminism.Deterministic
        return self._calm[node.op_type]

    def _outwards(self, graph: ir.Graph, body: ir.Graph, value: ir.Value) -> None:
        del body.initializers[value.name or ""]
        value.name = self._free(value.name)
        graph.initializers[value.name] = value

    def _rename(self, node: ir.Node) -> None:
        """Give a node and its results names that no other loop has."""
        node.name = self._free(node.name)
        for value in node.outputs:
            value.name = self._free(value.name)

    def _free(self, name: str | None) -> str:
        base = f"{name or 'value'}.before"
        found = next(free for k in count() if (free := f"{base}.{k}" if k else base) not in self.taken)
        self.taken.add(found)
        return found


def _may_fail(node: ir.Node) -> bool:
    """Whether an operator may fail where its loop is not run at all."""
    first, second = (*node.inputs, None, None)[:2]
    maker = None if first is None else first.producer()
    known = None
    if second is not None and not second.is_graph_input():  # what an input holds is a default
        known = ir.convenience.get_const_tensor(second)
    return may_fail(
        node.op_type,
        whole=first is None or first.dtype is None or first.dtype.is_integer(),
        shape=maker is not None and is_shape(maker.op_type),
        divisor=known is not None and bool(known.numpy().all()),
    )


def _states(node: ir.Node) -> tuple[State, ...] | None:
    if node.domain not in _STANDARD:
        return None
    scanned = node.attributes.get("num_scan_inputs")
    return states(node.op_type, len(node.inputs), 0 if scanned is None else scanned.as_int())


def _unchanged(loop: ir.Node, body: ir.Graph, found: Iterable[State]) -> dict[ir.Value, ir.Value]:
    """Return the states that every run hands on as they are, and what they are."""
    same: dict[ir.Value, ir.Value] = {}
    for state in found:
        taken, given = body.inputs[state.taken], loop.inputs[state.given]
        handed: ir.Value | None = body.outputs[state.handed]
        while handed is not taken and handed is not None:
            maker = handed.producer()
            copied = maker is not None and maker.domain in _STANDARD and is_copy(maker.op_type)
            handed = maker.inputs[0] if maker is not None and copied else None
        if handed is taken and given is not None:
            same[taken] = given
    return same


def _needed(fixed: Mapping[ir.Node, bool], body: ir.Graph) -> list[ir.Node]:
    """Return the nodes that more than constants decide, copies left out, and what they need, in order."""
    wanted: set[ir.Node] = set()
    stack = [node for node, decided in fixed.items() if decided and not is_copy(node.op_type)]
    while stack:
        node = stack.pop()
        if node in wanted:
            continue
        wanted.add(node)
        makers = (v.producer() for v in node.inputs if v is not None)
        stack += [p for p in makers if p is not None and p in fixed]
    return [node for node in body if node in wanted]
