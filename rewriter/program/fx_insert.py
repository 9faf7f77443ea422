"""Insertions into exported programs: new values that nodes read in place of others; shapes may change."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node as FxNode
from torch.fx import map_arg

from rewriter.lower.errors import EmitError
from rewriter.lower.torch_emitter import TorchEmitter
from rewriter.program.fx_edit import Editor, loosen_view
from rewriter.program.graph import Graph
from rewriter.program.program import OUTPUT, Insertion

__all__ = ["inserted"]


def inserted(
    exported: ExportedProgram,
    graph: Graph,
    insertions: Sequence[Insertion],
    emitter: type[TorchEmitter] = TorchEmitter,
) -> ExportedProgram:
    """Return a program with new values and what nothing reads any more removed; weights are shared.

    Parameters
    ----------
    exported, graph
        The program and its read view.
    insertions
        In order, which is that of their inputs in the graph.
    emitter
        What emits.

    Raises
    ------
    EmitError
        If an operator cannot take the new shapes.
    """
    edit = _Inserter(exported, graph, emitter)
    for insertion in insertions:
        edit.insert(insertion)
    return edit.settled()


class _Inserter(Editor):
    """A copy of a graph while values are inserted.

    Sample values behind an insertion have other shapes; they are computed again when they are read.
    """

    def __init__(self, exported: ExportedProgram, graph: Graph, emitter: type[TorchEmitter]) -> None:
        super().__init__(exported, graph, emitter)
        self._stale: set[FxNode] = set()
        self._replaced: list[FxNode] = []

    def insert(self, edit: Insertion) -> None:
        operands = [self._nodes[name] for name in edit.inputs]
        after = self._last(operands)
        self._refresh(operands)
        traced = self._traced(edit.build, [n.meta["val"] for n in operands], edit.shapes)
        meta: dict[str, Any] = {"custom": {"rewriter.site": edit.name, **edit.metadata}}
        place = after.next
        while place.op == "placeholder":
            place = place.next
        name = edit.name.replace(".", "_")
        result = self._inlined(traced, operands, place, name, meta)
        self._nodes[edit.name] = result
        self._changed.append(result)
        if edit.instead is not None:
            old = self._nodes[edit.instead]
            self._redirect(old, result, edit.readers)
            self._replaced.append(old)

    def _last(self, nodes: Sequence[FxNode]) -> FxNode:
        wanted = set(nodes)
        last: FxNode = next(n for n in reversed(self._graph.nodes) if n in wanted)
        return last

    def _redirect(self, old: FxNode, new: FxNode, readers: frozenset[str] | None) -> None:
        output = self._graph.output_node()
        if readers is None:
            own = _ancestors(new, old)
            users = [n for n in old.users if n not in own]
        else:
            wanted = {self._nodes[name] for name in readers - {OUTPUT}}
            users = [n for n in old.users if n in wanted or (n is output and OUTPUT in readers)]
        for user in users:
            user.replace_input_with(old, new)
            if user is output:
                name, old.name = old.name, f"{old.name}_before"
                new.name = name
            else:
                self._mark(user)

    def _mark(self, node: FxNode) -> None:
        """Note that the sample values of a node, and of all that are computed from it, hold no longer."""
        stack = [node]
        while stack:
            at = stack.pop()
            if at not in self._stale and at.op == "call_function":
                self._stale.add(at)
                stack.extend(at.users)

    def _refresh(self, wanted: Sequence[FxNode]) -> None:
        """Compute the sample values of nodes again, where they hold no longer."""
        stack = list(wanted)
        environment = self._mode.shape_env
        with self._mode, environment.suppress_guards() if environment else nullcontext(), torch.no_grad():
            while stack:
                node = stack[-1]
                before = [n for n in node.all_input_nodes if n in self._stale] if node in self._stale else []
                if before:
                    stack.extend(before)
                    continue
                stack.pop()
                if node in self._stale:
                    self._stale.remove(node)
                    self._resample(node)

    def _resample(self, node: FxNode) -> None:
        loosen_view(node)
        args, kwargs = map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        try:
            node.meta["val"] = node.target(*args, **kwargs)  # type: ignore[operator]
        except Exception as error:  # operators raise whatever they raise on shapes that do not fit
            reason = str(error).partition("\n")[0]
            raise EmitError(f"{node.name} cannot take another number of tokens: {reason}") from error
        self._changed.append(node)

    def settled(self) -> ExportedProgram:
        """Return the program."""
        unread, erased = list(dict.fromkeys(self._replaced)), set[FxNode]()
        while unread:  # attention may draw random numbers, and would be kept
            node = unread.pop()
            if node not in erased and not node.users and node.op == "call_function":
                unread += node.all_input_nodes
                erased.add(node)
                self._graph.erase_node(node)
        self._graph.eliminate_dead_code()
        alive = set(self._graph.nodes)
        self._stale &= alive
        self._refresh([n for n in self._graph.nodes if n in self._stale])
        self._changed = [n for n in self._changed if n in alive]
        return self.finish()


def _ancestors(node: FxNode, until: FxNode) -> set[FxNode]:
    """Return what a node is computed from, as far as a node that it may be computed from."""
    found: set[FxNode] = set()
    stack = [node]
    while stack:
        at = stack.pop()
        if at not in found and at is not until:
            found.add(at)
            stack.extend(at.all_input_nodes)
    return found
