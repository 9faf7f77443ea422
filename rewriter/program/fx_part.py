"""A part of an exported program as a function of arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx import Node as FxNode
from torch.fx import map_arg

from rewriter.errors import InputError
from rewriter.lower.torch_emitter import solve_sizes
from rewriter.program.fx_view import bindings
from rewriter.program.graph import Graph
from rewriter.program.program import Arrays
from rewriter.program.tensors import to_numpy, to_torch

__all__ = ["needed_weights", "part", "tensor_part"]


Tensors = Callable[[Sequence[Any]], list[Any]]
"""Tensors and whole numbers, in the order of the inputs, to those of the outputs."""


def part(
    exported: ExportedProgram, graph: Graph, inputs: Sequence[str], outputs: Sequence[str]
) -> Callable[[Arrays], list[np.ndarray]]:
    """Return the computation from ``inputs`` to ``outputs`` as a function of arrays; see `tensor_part`."""
    natives = {n.name: n for n in exported.graph.nodes}
    compute = tensor_part(exported, graph, inputs, outputs)

    def run(arrays: Arrays) -> list[np.ndarray]:
        given = [_operand(natives[name], arrays[name]) for name in inputs]
        with torch.no_grad():
            return list(map(_array, compute(given)))

    return run


def tensor_part(
    exported: ExportedProgram,
    graph: Graph,
    inputs: Sequence[str],
    outputs: Sequence[str],
    bound: Mapping[str, Any] | None = None,
) -> Tensors:
    """Return the computation from ``inputs`` to ``outputs``; weights are bound.

    Dynamic sizes are those of the tensors: a size that their shapes determine is not computed by the
    graph's own nodes, which may start at tensors that are not given.

    Parameters
    ----------
    exported, graph
        The program and its read view.
    inputs, outputs
        Names of nodes.
    bound
        Weights by the names of their placeholders; the program's own by default.

    Raises
    ------
    InputError
        If an output depends on something that is neither given nor a weight.
    """
    natives = {n.name: n for n in exported.graph.nodes}
    weights = bindings(exported) if bound is None else bound
    unknown = [name for name in (*inputs, *outputs) if name not in natives]
    if unknown:
        raise InputError(f"no value is called {', '.join(unknown)}; expected names of the graph's nodes")
    shapes = [graph.values[name].shape or () for name in inputs]
    known = {str(s) for s in solve_sizes((n, 1) for shape in shapes for n in shape)}
    steps = _steps(natives, set(inputs), set(weights), known, outputs)
    last = {read: step for step in steps for read in _reads(step, known)}

    def compute(given: Sequence[Any]) -> list[Any]:
        env = dict(zip(inputs, given, strict=True))
        sizes = solve_sizes(
            (size, n)
            for name, shape in zip(inputs, shapes, strict=True)
            for size, n in _sized(env[name], shape)
        )

        def value(node: FxNode) -> Any:
            if node.name not in env and node.name not in weights:
                env[node.name] = _number(node.meta["val"], sizes)
            return env[node.name] if node.name in env else weights[node.name]

        for node in steps:
            env[node.name] = _call(node)(*map_arg(node.args, value), **map_arg(node.kwargs, value))
            for read in node.all_input_nodes:
                if last.get(read) is node and read.name not in outputs:
                    env.pop(read.name, None)
        return [value(natives[name]) for name in outputs]

    return compute


def needed_weights(
    exported: ExportedProgram, graph: Graph, inputs: Sequence[str], outputs: Sequence[str]
) -> dict[str, Any]:
    """Return the weights that the computation from ``inputs`` to ``outputs`` reads, by placeholder."""
    weights = bindings(exported)
    read = {v for n in graph.region(outputs, set(inputs)) for v in n.inputs} | set(outputs)
    return {name: held for name, held in weights.items() if name in read}


def _call(node: FxNode) -> Callable[..., Any]:
    """Return what a node calls; a view may have to copy, as what is given has strides of its own."""
    if node.target is torch.ops.aten.view.default:
        return torch.ops.aten.reshape.default
    called: Callable[..., Any] = node.target  # type: ignore[assignment]
    return called


def _steps(
    natives: Mapping[str, FxNode], given: set[str], bound: set[str], known: set[str], outputs: Sequence[str]
) -> list[FxNode]:
    """Return the nodes to run, in the order of the graph."""
    found: set[FxNode] = set()
    stack = [natives[name] for name in outputs]
    while stack:
        node = stack.pop()
        if node.name in given or node.name in bound or node in found or _determined(node, known):
            continue
        if node.op != "call_function":
            raise InputError(f"{', '.join(outputs)} also depends on {node.name}, which is not given")
        found.add(node)
        stack.extend(node.all_input_nodes)
    return [n for n in natives.values() if n in found]


def _reads(node: FxNode, known: set[str]) -> list[FxNode]:
    return [n for n in node.all_input_nodes if not _determined(n, known)]


def _determined(node: FxNode, known: set[str]) -> bool:
    """Whether a node is a number that the shapes of the operands give."""
    value = node.meta.get("val")
    return isinstance(value, torch.SymInt) and all(str(s) in known for s in value.node.expr.free_symbols)


def _operand(node: FxNode, given: np.ndarray) -> Any:
    return int(given) if isinstance(node.meta.get("val"), torch.SymInt) else to_torch(given)


def _sized(tensor: Any, shape: Sequence[Any]) -> list[tuple[Any, int]]:
    if not isinstance(tensor, torch.Tensor):
        return []
    if tensor.dim() != len(shape):
        raise InputError(
            f"an operand has shape {list(tensor.shape)}, expected [{', '.join(map(str, shape))}]"
        )
    return list(zip(shape, tensor.shape, strict=True))


def _number(value: torch.SymInt, sizes: Mapping[str, Any]) -> int:
    expression = value.node.expr
    return int(expression.subs({s: sizes[str(s)] for s in expression.free_symbols}))


def _array(value: Any) -> np.ndarray:
    return to_numpy(value) if isinstance(value, torch.Tensor) else np.asarray(value)
