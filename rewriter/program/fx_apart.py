"""Products of many tensors in an exported program, taken apart into chains of products of two."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch.export import ExportedProgram

from rewriter.lower.torch_emitter import TorchEmitter
from rewriter.program.chains import Chain, Chains
from rewriter.program.fx_edit import PROVENANCE, Editor
from rewriter.program.graph import Graph

__all__ = ["taken_apart"]


def taken_apart(exported: ExportedProgram, graph: Graph, chains: Chains) -> ExportedProgram:
    """Return the program with chains in the place of products; weights are shared."""
    edit = _Splitter(exported, graph, TorchEmitter)
    for chain in chains.values():
        edit.split(chain)
    return edit.finish()


class _Splitter(Editor):
    """A copy of a program while products are taken apart."""

    def split(self, chain: Chain) -> None:
        """Let the last product of the chain be of two operands, the others before it."""
        *before, last = chain
        anchor = self._nodes[last.name]
        meta = {key: anchor.meta[key] for key in PROVENANCE if key in anchor.meta}
        environment = self._mode.shape_env
        for product in before:
            operands = [self._nodes[name] for name in product.operands]
            with self._graph.inserting_before(anchor):
                node = self._graph.call_function(anchor.target, (product.equation, operands))
            node.name = product.name
            with self._mode, environment.suppress_guards() if environment else nullcontext(), torch.no_grad():
                node.meta = {
                    "val": anchor.target(product.equation, [n.meta["val"] for n in operands]),
                    **meta,
                }
            self._nodes[product.name] = node
        anchor.args = (last.equation, [self._nodes[name] for name in last.operands])
        anchor.kwargs = {}
