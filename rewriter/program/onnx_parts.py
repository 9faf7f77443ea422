"""Parts of ONNX models as models of their own: cut out of a graph, or newly written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from rewriter.algebra.sizes import Size
from rewriter.errors import InputError
from rewriter.lower.onnx_emitter import OnnxEmitter
from rewriter.lower.onnx_writer import onnx_type
from rewriter.program.graph import Graph, Node
from rewriter.program.program import Build

__all__ = ["TypeOf", "Written", "cut_out", "main_values", "standard_opset", "write", "written"]

_FUNCTIONS_SINCE = 8  # IR version

TypeOf = Callable[[str], tuple[tuple[Size, ...], str]]
"""Shape and dtype of a value by name."""


def standard_opset(model: ir.Model) -> int:
    """Return the version of the standard operators."""
    imports = model.opset_imports
    return imports[""] if "" in imports else imports["ai.onnx"]


def main_values(model: ir.Model) -> dict[str, ir.Value]:
    """Return the values of the main graph by name."""
    graph = model.graph
    values = {v.name: v for v in (*graph.inputs, *graph.initializers.values())}
    values.update((v.name, v) for node in graph for v in node.outputs)
    return {name: value for name, value in values.items() if name}


def cut_out(
    model: ir.Model,
    graph: Graph,
    inputs: Sequence[str],
    outputs: Sequence[str],
    dtypes: Mapping[str, str],
    values: Mapping[str, ir.Value] | None = None,
) -> ir.Model:
    """Return the part that computes ``outputs`` from ``inputs``; it shares the weights.

    Parameters
    ----------
    model, graph
        The model and its read view.
    inputs, outputs
        Names of values.
    dtypes
        Types of the inputs.
    values
        What `main_values` gives, where it is at hand: to find it takes as long as the model is large.

    Raises
    ------
    InputError
        If the part needs a graph input that is not among ``inputs``.
    """
    given = set(inputs)
    nodes = graph.region(outputs, given)
    read = dict.fromkeys(v for n in nodes for v in n.inputs if v is not None)
    read.update(dict.fromkeys(outputs))
    missing = [v for v in graph.inputs if v in read and v not in given]
    if missing:
        raise InputError(
            f"The part up to {', '.join(outputs)} also reads the graph input {missing[0]!r}; "
            "give it as an input."
        )
    values = main_values(model) if values is None else values
    own = {*graph.constants, *graph.held} - given
    constants = [values[name] for name in read if name in own]
    producers = [value.producer() for value in constants]
    view = ir.GraphView(
        [values[name] for name in inputs],
        [values[name] for name in outputs],
        nodes=[*(p for p in producers if p is not None), *(_native(values, n) for n in nodes)],
        initializers=[v for v, p in zip(constants, producers, strict=True) if p is None],
        opset_imports=dict(model.opset_imports),
        name="part",
    )
    part = view.clone()
    for value, name in zip(part.inputs, inputs, strict=True):
        value.const_value = None
        _declare(value, dtypes.get(name), graph.values[name].shape)
    _read_given(part, {v for n in nodes for v in n.outputs} & given)
    _separate_outputs(part, outputs)
    for value in part.outputs:
        _declare(value, None, None)  # inferred: it may depend on a type that only the caller knows
    return _model(part, model)


def _native(values: Mapping[str, ir.Value], node: Node) -> ir.Node:
    native = values[next(name for name in node.outputs if name in values)].producer()
    assert native is not None
    return native


def _declare(value: ir.Value, dtype: str | None, shape: Sequence[Size] | None) -> None:
    """Type a boundary value; sizes that are not numbers are left open."""
    value.type = None if dtype is None else ir.TensorType(onnx_type(dtype))
    value.shape = None if shape is None else ir.Shape([n.known() for n in shape])


def _model(graph: ir.Graph, like: ir.Model) -> ir.Model:
    version = max(like.ir_version, _FUNCTIONS_SINCE)
    return ir.Model(graph, ir_version=version, functions=list(like.functions.values()))


def _read_given(part: ir.Graph, names: set[str]) -> None:
    """Let readers use the given value where a node of the part also computes it."""
    given = {v.name: v for v in part.inputs}
    for output in [v for node in part for v in node.outputs if v.name in names]:
        output.replace_all_uses_with(given[output.name], replace_graph_outputs=True)
        output.name = f"{output.name}::computed"


def _separate_outputs(part: ir.Graph, names: Sequence[str]) -> None:
    """Make every output a value of its own, written by a node: not an input, a constant or a repeat."""
    seen: set[ir.Value] = set()
    for at, (value, name) in enumerate(zip(list(part.outputs), names, strict=True)):
        if value in seen or value.producer() is None:
            copy = ir.Node("", "Identity", [value], outputs=[ir.Value(name=f"{name}::output_{at}")])
            part.append(copy)
            part.outputs[at] = copy.outputs[0]
        seen.add(part.outputs[at])


@dataclass(frozen=True)
class Written:
    """A new computation.

    Parameters
    ----------
    inputs
        The values it reads.
    nodes
        Its nodes, in order.
    output
        Its result.
    dtype
        Type of the result.
    domains
        Operator sets it uses besides the standard one.
    """

    inputs: list[ir.Value]
    nodes: list[ir.Node]
    output: ir.Value
    dtype: str
    domains: dict[str, int]


def write(
    inputs: Sequence[ir.Value],
    types: Sequence[tuple[tuple[Size, ...], str]],
    build: Build,
    emitter: OnnxEmitter,
) -> Written:
    """Write a computation of ``inputs``; nodes that turn out not to be needed are left out."""
    handles = [emitter.input(v, shape, dtype) for v, (shape, dtype) in zip(inputs, types, strict=True)]
    result = build(emitter, handles)
    if result.value in inputs:
        result = emitter.map("identity", result)
    needed: set[ir.Value] = {result.value}
    nodes: list[ir.Node] = []
    for node in reversed(emitter.nodes):
        if needed.isdisjoint(node.outputs):
            for at in range(len(node.inputs)):
                node.replace_input_with(at, None)
        else:
            needed.update(v for v in node.inputs if v is not None)
            nodes.append(node)
    return Written(list(inputs), nodes[::-1], result.value, result.dtype, emitter.domains)


def written(
    model: ir.Model, inputs: Sequence[str], types: TypeOf, build: Build, emitter: OnnxEmitter
) -> ir.Model:
    """Return a new computation as a model with the given inputs, in the emitter's opset."""
    declared = [types(name) for name in inputs]
    values = [ir.Value(name=name) for name in inputs]
    new = write(values, declared, build, emitter)
    for value, (shape, dtype) in zip(values, declared, strict=True):
        _declare(value, dtype, shape)
    _declare(new.output, new.dtype, None)
    imports = {**model.opset_imports, **new.domains, "": emitter.opset}
    imports.pop("ai.onnx", None)
    graph = ir.Graph(values, [new.output], nodes=new.nodes, opset_imports=imports, name="part")
    return _model(graph, model)
