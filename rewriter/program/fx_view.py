"""The read view of an exported program, and the tensors that it binds."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.fx import Node as FxNode
from torch.utils._python_dispatch import _disable_current_modes

from rewriter.algebra.sizes import Size
from rewriter.program.fx_numbers import determined
from rewriter.program.graph import Graph, Node, Value
from rewriter.program.tensors import to_numpy

__all__ = ["bindings", "hidden_outputs", "view"]


def view(exported: ExportedProgram) -> Graph:
    """Return the graph: one node per operator, values named after the nodes that write them.

    A node with several results writes one value of unknown shape, which ``getitem`` nodes read; inputs
    that were given as plain Python values are no inputs. Buffers that a run writes to are held: neither
    inputs nor constants.
    """
    nodes: list[Node] = []
    values: dict[str, Value] = {}
    outputs: tuple[str, ...] = ()
    bound, written = bindings(exported), _written(exported)
    fixed = {name: held for name, held in bound.items() if name not in written}
    numbers = {n: Size.of(number) for n, number in determined(exported, fixed).items()}
    sizes = _Sizes({str(n.meta["val"].node.expr): size for n, size in numbers.items()})
    for node in exported.graph.nodes:
        if node.op == "output":
            outputs = tuple(_reads(node.args))
            continue
        values[node.name] = _value(node, sizes)
        if node.op == "call_function":
            inputs = (*_reads(node.args), *_reads(tuple(node.kwargs.values())))
            nodes.append(Node(node.name, _operator(node.target), inputs, (node.name,), node))
    users = tuple(n.name for n in exported.graph.nodes if n.op == "placeholder" and n.name not in bound)
    constants = {name: _loader(held) for name, held in fixed.items() if isinstance(held, torch.Tensor)}
    known = {node.name: size for node, size in numbers.items()}
    hidden = hidden_outputs(exported)
    held = {name: _loader(bound[name]) for name in bound if name in written}
    return Graph(tuple(nodes), values, users, outputs[hidden:], constants, known, outputs[:hidden], held)


def hidden_outputs(exported: ExportedProgram) -> int:
    """Return how many outputs come before those of the user: buffers and inputs that are updated."""
    signature = exported.graph_signature
    return len(signature.buffers_to_mutate) + len(signature.user_inputs_to_mutate)


def _written(exported: ExportedProgram) -> set[str]:
    """Return the placeholders of buffers that a run writes to: what they hold is no constant."""
    written = set(exported.graph_signature.buffers_to_mutate.values())
    buffers = exported.graph_signature.inputs_to_buffers
    return {name for name, target in buffers.items() if target in written}


def bindings(exported: ExportedProgram) -> dict[str, Any]:
    """Return what the program itself puts into its placeholders, by their names.

    That is weights, buffers, lifted constants, and inputs that were given as plain Python values when
    it was traced. The other placeholders are the inputs.
    """
    names = [n.name for n in exported.graph.nodes if n.op == "placeholder"]
    bound: dict[str, Any] = {}
    for name, spec in zip(names, exported.graph_signature.input_specs, strict=True):
        if spec.kind != InputKind.USER_INPUT:
            held = exported.state_dict if spec.target in exported.state_dict else exported.constants
            bound[name] = held[spec.target or ""]
        elif isinstance(spec.arg, ConstantArgument):
            bound[name] = spec.arg.value
    return bound


def _reads(arguments: Sequence[Any]) -> list[str]:
    """Return the names of the nodes in nested arguments, in order."""
    found: list[str] = []
    for argument in arguments:
        if isinstance(argument, FxNode):
            found.append(argument.name)
        elif isinstance(argument, list | tuple):
            found += _reads(argument)
        elif isinstance(argument, dict):
            found += _reads(tuple(argument.values()))
        elif isinstance(argument, slice):
            found += _reads((argument.start, argument.stop, argument.step))
    return found


def _loader(tensor: torch.Tensor) -> Callable[[], np.ndarray]:
    def load() -> np.ndarray:
        with _disable_current_modes():  # while a graph is traced, too, the numbers are those of the weight
            return to_numpy(tensor)

    return load


def _operator(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return str(target).replace(".", "::", 1)
    if target is operator.getitem:
        return "getitem"
    return f"{getattr(target, '__module__', '').lstrip('_')}::{getattr(target, '__name__', target)}"


class _Sizes:
    """Shapes as torch states them, with the dimensions that are known in them as numbers."""

    def __init__(self, numbers: Mapping[str, Size]) -> None:
        self._numbers = numbers
        self._known: dict[Any, Size] = {}

    def __getitem__(self, n: int | torch.SymInt) -> Size:
        if isinstance(n, int):
            return Size.of(n)
        expression = n.node.expr
        if expression not in self._known:
            self._known[expression] = Size.parse(str(expression)).substitute(self._numbers)
        return self._known[expression]


def _value(node: FxNode, sizes: _Sizes) -> Value:
    known = node.meta.get("val")
    if isinstance(known, torch.Tensor):
        shape = tuple(sizes[n] for n in known.shape)
        return Value(node.name, shape, str(known.dtype).removeprefix("torch."))
    if isinstance(known, torch.SymInt | int) and not isinstance(known, bool):
        return Value(node.name, (), "int64")
    return Value(node.name, None, None)
