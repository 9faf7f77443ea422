"""One read view of a graph, whatever it was captured from: nodes, values, and structural questions.

A *value* is one tensor (or one symbolic integer) with a unique name; a *node* computes values from
values. Operator names are opaque here: only the frontends in `rewriter.algebra.frontends` and the
emitters in `rewriter.lower` know what they mean.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rewriter.algebra.sizes import Size

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["Graph", "Node", "Value"]


class Value(NamedTuple):
    """A tensor of the graph.

    Parameters
    ----------
    name
        Unique in the graph.
    shape
        Sizes of its axes, or None when even the rank is unknown.
    dtype
        ``"float32"``, ``"bfloat16"``, ``"int64"``, ``"bool"``, …, or None when unknown.
    """

    name: str
    shape: tuple[Size, ...] | None
    dtype: str | None


@dataclass(slots=True, eq=False)  # never changed; to freeze it would take most of the time to make one
class Node:
    """An operation of the graph.

    Parameters
    ----------
    name
        Unique in the graph.
    op
        Qualified operator name, ``"aten::matmul.default"`` or ``"ai.onnx::MatMul"``.
    inputs
        Names of the values read, in operand order; None where an optional operand is absent.
    outputs
        Names of the values written.
    native
        The object of the native graph, for frontends: a `torch.fx.Node`, or a node of an ONNX message.
    """

    name: str
    op: str
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    native: Any


@dataclass(frozen=True)
class Graph:
    """A graph in topological order.

    Parameters
    ----------
    nodes
        In an order in which every value is written before it is read.
    values
        Every value by name, inputs and constants included.
    inputs, outputs
        Names of the values at the boundary, in signature order.
    constants
        Weights and other known values: name -> function that loads the array (memory-mapped where
        the file allows; call it only when the numbers are needed).
    numbers
        Values that are whole numbers which follow from constants alone, by name.
    writes
        Values that a run writes to buffers or to its inputs: they are read after it.
    held
        Values that the program brings along and that are no constants: buffers that runs write to, inputs
        that have a default. Name -> function that loads what they hold now.
    """

    nodes: tuple[Node, ...]
    values: Mapping[str, Value]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Callable[[], np.ndarray]] = field(default_factory=dict)
    numbers: Mapping[str, Size] = field(default_factory=dict)
    writes: tuple[str, ...] = ()
    held: Mapping[str, Callable[[], np.ndarray]] = field(default_factory=dict)

    @cached_property
    def _producer(self) -> dict[str, Node]:
        return {value: node for node in self.nodes for value in node.outputs}

    @cached_property
    def _readers(self) -> dict[str, list[Node]]:
        readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.inputs):
                if value is not None:
                    readers.setdefault(value, []).append(node)
        return readers

    @cached_property
    def ends(self) -> tuple[str, ...]:
        """Values that are read after a run: the outputs, and what is written; each once."""
        return tuple(dict.fromkeys((*self.outputs, *self.writes)))

    @cached_property
    def _last(self) -> frozenset[str]:
        return frozenset(self.ends)

    @cached_property
    def position(self) -> Mapping[str, int]:
        """Index of each node (by name) in topological order."""
        return {node.name: at for at, node in enumerate(self.nodes)}

    def producer(self, value: str) -> Node | None:
        """Return the node that writes ``value``, or None for an input or a constant."""
        return self._producer.get(value)

    def readers(self, value: str) -> Sequence[Node]:
        """Return the nodes that read ``value``, each once."""
        return self._readers.get(value, ())

    def region(self, outputs: Iterable[str], inputs: Collection[str]) -> tuple[Node, ...]:
        """Return the nodes that compute ``outputs`` when ``inputs`` are given, in order.

        The walk stops at ``inputs``; it also stops at graph inputs and constants, so a caller
        that needs a closed region checks `boundary`.
        """
        stop, found, stack = set(inputs), {}, [v for v in outputs if v not in set(inputs)]
        while stack:
            node = self._producer.get(stack.pop())
            if node is None or node.name in found:
                continue
            found[node.name] = node
            stack.extend(v for v in node.inputs if v is not None and v not in stop)
        return tuple(sorted(found.values(), key=lambda n: self.position[n.name]))

    def boundary(self, region: Iterable[Node]) -> tuple[str, ...]:
        """Return the values that a region reads and does not write, constants left out."""
        nodes = list(region)
        written = {v for n in nodes for v in n.outputs}
        read = dict.fromkeys(v for n in nodes for v in n.inputs if v is not None)
        return tuple(v for v in read if v not in written and v not in self.constants)

    def escapes(self, region: Iterable[Node], outputs: Collection[str]) -> tuple[tuple[str, str], ...]:
        """Return ``(value, reader)`` for every interior value that something outside reads.

        A reader is a node name, or ``"<output>"`` where the value is an output of the graph.
        """
        nodes = {n.name: n for n in region}
        interior = [v for n in nodes.values() for v in n.outputs if v not in outputs]
        found = [(v, r.name) for v in interior for r in self.readers(v) if r.name not in nodes]
        return tuple(found + [(v, "<output>") for v in interior if v in self._last])

    def networkx(self) -> nx.DiGraph:
        """Return the nodes as a `networkx.DiGraph`; edge attribute ``values`` names what flows."""
        import networkx as nx

        graph: nx.DiGraph = nx.DiGraph()
        graph.add_nodes_from((n.name, {"op": n.op}) for n in self.nodes)
        for node in self.nodes:
            for value in dict.fromkeys(node.inputs):
                source = self._producer.get(value) if value is not None else None
                if source is not None:
                    flow = graph.get_edge_data(source.name, node.name, {"values": ()})["values"]
                    graph.add_edge(source.name, node.name, values=(*flow, value))
        return graph

    def convex(self, region: Iterable[Node]) -> bool:
        """Whether no path leaves the region and comes back: what replacing it as one node needs."""
        members = tuple(region)
        inside = {n.name for n in members}
        last = max((self.position[n] for n in inside), default=-1)
        stack = [r for n in members for v in n.outputs for r in self.readers(v)]
        seen: set[str] = set()
        while stack:
            node = stack.pop()
            if node.name in inside or node.name in seen or self.position[node.name] > last:
                continue
            seen.add(node.name)
            for value in node.outputs:
                for reader in self.readers(value):
                    if reader.name in inside:
                        return False
                    stack.append(reader)
        return True
