"""Run a model again and again on one first input, computing what that input alone decides once."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Interpreter, Node

from rewriter.program.program import Program

__all__ = ["DecoderOnly"]


class DecoderOnly:
    """An encoder and decoder as one run; the encoder runs once as long as its input is the same object.

    Parameters
    ----------
    program
        An FX program; its first input is the encoder's.
    """

    def __init__(self, program: Program) -> None:
        module = program.module()
        assert isinstance(module, torch.fx.GraphModule)
        self._module = module
        self._encoded, self._read = _parts(self._module.graph)
        self._of: Any = None
        self._kept: dict[Node, Any] = {}

    def __call__(self, first: Any, *others: Any) -> tuple[Any, ...]:
        """Return the outputs."""
        if first is not self._of:
            self._kept, self._of = {}, first
        runner = _Keeping(self._module, self._read)
        with torch.inference_mode():
            outputs = runner.run(first, *others, initial_env=dict(self._kept))
        self._kept = {node: runner.kept.get(node, self._kept.get(node)) for node in self._encoded}
        return outputs if isinstance(outputs, tuple) else (outputs,)


class _Keeping(Interpreter):
    """Keeps the values of some nodes."""

    def __init__(self, module: torch.fx.GraphModule, wanted: set[Node]) -> None:
        super().__init__(module)
        self._wanted = wanted
        self.kept: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n in self._wanted:
            self.kept[n] = value
        return value


def _parts(graph: torch.fx.Graph) -> tuple[set[Node], set[Node]]:
    """Return the nodes that no later input reaches, and those of them that others read."""
    given = [node for node in graph.nodes if node.op == "placeholder"]
    rest = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    reached = set(given[1:])
    for node in rest:
        if reached.intersection(node.all_input_nodes):
            reached.add(node)
    encoded = {node for node in rest if node not in reached}
    return encoded, {node for node in encoded if not encoded.issuperset(node.users)}
