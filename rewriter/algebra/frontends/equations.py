"""Which operators of a graph are products by an equation, in either dialect."""

from __future__ import annotations

from rewriter.algebra.equation import Equation
from rewriter.program.graph import Graph, Node

__all__ = ["MOST", "equations"]

MOST = 8
"""Products of more tensors are not looked into."""


def equations(graph: Graph) -> dict[str, Equation]:
    """Return the equations of the nodes that multiply three tensors or more (`MOST`), by what they write.

    The operands are the inputs of the node, in order.
    """
    found = {node.outputs[0]: text for node in graph.nodes if (text := _text(node)) is not None}
    parsed = {name: Equation.parse(text) for name, text in found.items()}
    return {name: e for name, e in parsed.items() if e is not None and 2 < len(e.operands) <= MOST}


def _text(node: Node) -> str | None:
    match node.op:
        case "aten::einsum.default":
            text = node.native.args[0]
        case "ai.onnx::Einsum":
            text = node.native.attributes().get("equation")
        case _:
            return None
    return text if isinstance(text, str) else None
