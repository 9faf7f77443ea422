"""Edits of ONNX models: cut a part out, write a new computation, put one in the place of another."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import onnx
import onnx_ir as ir

from rewriter.algebra.sizes import Size
from rewriter.errors import InputError
from rewriter.lower.errors import EmitError
from rewriter.lower.onnx_emitter import OnnxEmitter, Tensor
from rewriter.program.graph import Graph, Node, Value
from rewriter.program.onnx_file import skeleton
from rewriter.program.onnx_graph import dtype_of
from rewriter.program.onnx_wire import INLINE
from rewriter.program.program import Build, Replacement

__all__ = ["DOMAIN", "SITES", "convert_opset", "cut_out", "replaced", "written"]

DOMAIN = "rewriter"
"""Domain of the functions that replacements become."""

SITES = "rewriter.sites"
"""Model metadata that lists what was rewritten, as JSON."""

_FUNCTIONS_SINCE = 8  # IR version
_INITIALIZERS_ARE_INPUTS_BEFORE = 4  # IR version

TypeOf = Callable[[str], tuple[tuple[Size, ...], str]]
"""Shape and dtype of a value by name."""


def _standard_opset(model: ir.Model) -> int:
    imports = model.opset_imports
    return imports[""] if "" in imports else imports["ai.onnx"]


def _declare(value: ir.Value, dtype: str | None, shape: Sequence[Size] | None) -> None:
    """Type a boundary value; sizes that are not numbers are left open."""
    value.type = None if dtype is None else ir.TensorType(dtype_of(dtype))
    value.shape = None if shape is None else ir.Shape([n.known() for n in shape])


def _model(graph: ir.Graph, like: ir.Model) -> ir.Model:
    return ir.Model(
        graph, ir_version=max(like.ir_version, _FUNCTIONS_SINCE), functions=list(like.functions.values())
    )


def cut_out(model: ir.Model, graph: Graph, inputs: Sequence[str], outputs: Sequence[str], dtypes: Mapping[str, str]) -> ir.Model:
    """Return the part of a model that computes ``outputs`` from ``inputs``, as a model that shares its weights.

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
        raise InputError(f"The part up to {list(outputs)} also reads the graph input {missing[0]!r}; give it as an input.")
    values = main_values(model)
    initializers: list[ir.Value] = []
    constants: list[ir.Node] = []
    for name in read:
        if name in graph.constants and name not in given:
            producer = values[name].producer()
            if producer is None:
                initializers.append(values[name])
            else:
                constants.append(producer)
    view = ir.GraphView(
        [values[name] for name in inputs],
        [values[name] for name in outputs],
        nodes=[*constants, *(n.native for n in nodes)],
        initializers=initializers,
        opset_imports=dict(model.opset_imports),
        name="part",
    )
    part = view.clone()
    written_again = {v for n in nodes for v in n.outputs} & given
    for value in part.inputs:
        _declare(value, dtypes.get(value.name or ""), graph.values[value.name or ""].shape)
        value.const_value = None
    if written_again:
        _read_given(part, written_again)
    _separate_outputs(part, outputs)
    for value, name in zip(part.outputs, outputs, strict=True):
        _declare(value, graph.values[name].dtype, None)
    return _model(part, model)


def main_values(model: ir.Model) -> dict[str, ir.Value]:
    """Return the values of the main graph by name."""
    graph = model.graph
    values = {v.name: v for v in (*graph.inputs, *graph.initializers.values())}
    values.update((v.name, v) for node in graph for v in node.outputs if v.name)
    return {name: value for name, value in values.items() if name}


def _read_given(part: ir.Graph, names: set[str]) -> None:
    """Let readers use the given value where a node of the part also computes it."""
    given = {v.name: v for v in part.inputs}
    for node in part:
        for output in node.outputs:
            if output.name in names:
                output.replace_all_uses_with(given[output.name], replace_graph_outputs=True)
                output.name = f"{output.name}::computed"


def _separate_outputs(part: ir.Graph, names: Sequence[str]) -> None:
    """Make every output a value of its own, written by a node: not an input, a constant or a repeat."""
    seen: set[ir.Value] = set()
    for at, (value, name) in enumerate(zip(part.outputs, names, strict=True)):
        if value in seen or value.producer() is None:
            copy = ir.Node("", "Identity", [value], outputs=[ir.Value(name=f"{name}::output_{at}")])
            part.append(copy)
            part.outputs[at] = copy.outputs[0]
        seen.add(part.outputs[at])


@dataclass(frozen=True)
class _Written:
    """Nodes of a new computation."""

    inputs: list[ir.Value]
    nodes: list[ir.Node]
    output: Tensor
    domains: dict[str, int]


def _write(
    inputs: Sequence[ir.Value], types: Sequence[tuple[tuple[Size, ...], str]], build: Build,
    opset: int, target: str, prefix: str = "",
) -> _Written:  # fmt: skip
    emitter = OnnxEmitter(opset, target, prefix)
    handles = [emitter.input(v, shape, dtype) for v, (shape, dtype) in zip(inputs, types, strict=True)]
    output = build(emitter, handles)
    if output.value in inputs:
        output = emitter.map("identity", output)
    needed: set[ir.Value] = {output.value}
    nodes: list[ir.Node] = []
    for node in reversed(emitter.nodes):
        if needed.isdisjoint(node.outputs):
            for at in range(len(node.inputs)):
                node.replace_input_with(at, None)
        else:
            needed.update(v for v in node.inputs if v is not None)
            nodes.append(node)
    return _Written(list(inputs), nodes[::-1], output, emitter.domains)


def written(
    model: ir.Model, inputs: Sequence[str], types: TypeOf, build: Build, target: str, opset: int
) -> ir.Model:
    """Return a new computation as a model with the given inputs."""
    declared = [types(name) for name in inputs]
    values = [ir.Value(name=name) for name in inputs]
    new = _write(values, declared, build, opset, target)
    for value, (shape, dtype) in zip(values, declared, strict=True):
        _declare(value, dtype, shape)
    _declare(new.output.value, new.output.dtype, None)
    imports = {**model.opset_imports, **new.domains, "": opset}
    imports.pop("ai.onnx", None)
    graph = ir.Graph(values, [new.output.value], nodes=new.nodes, opset_imports=imports, name="part")
    return _model(graph, model)


def replaced(
    model: ir.Model, replacements: Sequence[Replacement], types: TypeOf, target: str, inline: bool
) -> ir.Model:
    """Return a copy of a model with values computed in new ways; it shares the weights.

    Raises
    ------
    EmitError
        If a computation cannot be written for the target.
    ValueError
        If a replacement names values that the graph does not compute.
    """
    new = model.clone()
    new.meta.update(model.meta)
    values = main_values(new)
    functions = _Functions(new)
    opset = _standard_opset(new)
    done: dict[str, dict[str, str]] = json.loads(new.metadata_props.get(SITES, "{}"))
    taken = {v for v in values} | {n.name for n in new.graph if n.name}
    for edit in replacements:
        old = values.get(edit.output)
        producer = None if old is None else old.producer()
        if old is None or producer is None:
            raise ValueError(f"{edit.output!r} is not computed by a node of the graph, so it cannot be replaced")
        inputs = [values[name] for name in edit.inputs]
        declared = [types(name) for name in edit.inputs]
        about = dict(sorted(edit.metadata.items()))
        prefix = _free_prefix(edit.name, taken)
        if inline:
            body = _write(inputs, declared, edit.build, opset, target, f"{prefix}.")
            nodes, output, domains = body.nodes, body.output, body.domains
        else:
            stand_ins = [ir.Value(name=f"input_{k}") for k in range(len(inputs))]
            body = _write(stand_ins, declared, edit.build, opset, target)
            call, function = functions.call(body, inputs, prefix, about)
            nodes, output, domains = [call], Tensor(call.outputs[0], body.output.shape, body.output.dtype), body.domains
            new.opset_imports[DOMAIN] = 1
            about = {**about, "function": function}
        wanted = types(edit.output)[1]
        if output.dtype != wanted:
            raise EmitError(f"The new computation of {edit.output!r} gives {output.dtype}; the model needs {wanted}.")
        new.opset_imports.update(domains)
        for node in nodes:
            node.metadata_props.update({f"rewriter.{key}": text for key, text in about.items()})
        new.graph.insert_before(producer, nodes)
        _take_over(old, output.value, prefix)
        values[edit.output] = output.value
        taken.update(v.name for n in nodes for v in n.outputs if v.name)
        done[edit.name] = about
        _remove_dead(new.graph, [producer])
    if replacements:
        new.metadata_props[SITES] = json.dumps(done, sort_keys=True)
    functions.remove_unused()
    if new.functions and new.ir_version < _FUNCTIONS_SINCE:
        _raise_ir_version(new)
    return new


def _free_prefix(name: str, taken: set[str]) -> str:
    for candidate in (name, *(f"{name}.{k}" for k in count(1))):
        if candidate not in taken and not any(other.startswith(f"{candidate}.") for other in taken):
            return candidate
    raise AssertionError("count() does not end")


def _take_over(old: ir.Value, new: ir.Value, prefix: str) -> None:
    """Give ``new`` the readers, the name and the type of ``old``."""
    new.type, new.shape, new.doc_string = old.type, old.shape, old.doc_string
    new.metadata_props.update(old.metadata_props)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    name = old.name
    old.name = f"{prefix}.replaced"
    new.name = name


def _remove_dead(graph: ir.Graph, candidates: Iterable[ir.Node]) -> None:
    """Remove nodes whose outputs nobody reads any more, and what only they needed."""
    stack = list(candidates)
    while stack:
        node = stack.pop()
        if node.graph is not graph or any(v.uses() or v.is_graph_output() for v in node.outputs):
            continue
        read = {v for n in _with_inner(node) for v in n.inputs if v is not None}
        for inner in _with_inner(node):
            for at in range(len(inner.inputs)):
                inner.replace_input_with(at, None)
        graph.remove(node)
        for value in read:
            producer = value.producer()
            if producer is not None:
                stack.append(producer)
            elif value.is_initializer() and value.graph is graph and not value.uses():
                if not value.is_graph_output() and value not in graph.inputs:
                    del graph.initializers[value.name or ""]


def _with_inner(node: ir.Node) -> list[ir.Node]:
    """Return a node and the nodes of its inner graphs."""
    found = [node]
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            found += ir.traversal.RecursiveGraphIterator(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            for graph in attribute.as_graphs():
                found += ir.traversal.RecursiveGraphIterator(graph)
    return found


class _Functions:
    """The model-local functions that replacements become; equal bodies are one function."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._by_body = {
            _fingerprint(f): f.name for f in model.functions.values() if f.domain == DOMAIN
        }

    def call(
        self, body: _Written, inputs: Sequence[ir.Value], name: str, about: Mapping[str, str]
    ) -> tuple[ir.Node, str]:
        """Return a node that calls the function with this body, made if there is none yet, and its name."""
        form = re.sub(r"\W+", "_", about.get("form", "").partition(":")[0]).strip("_")
        base = f"{form}_attention" if form else "replacement"
        imports = {"": _standard_opset(self._model), **body.domains}
        graph = ir.Graph(
            body.inputs, [body.output.value], nodes=body.nodes, opset_imports=imports, name=base
        )
        function = ir.Function(DOMAIN, base, graph=graph, attributes=[])
        key = _fingerprint(function)
        if key not in self._by_body:
            taken = {f.name for f in self._model.functions.values() if f.domain == DOMAIN}
            function.name = next(free for k in count() if (free := f"{base}_{k}") not in taken)
            settings = ", ".join(f"{k} {about[k]}" for k in ("form", "fidelity") if k in about)
            function.doc_string = f"Written by rewriter: {settings}." if settings else "Written by rewriter."
            self._model.functions[function.identifier()] = function
            self._by_body[key] = function.name
        output = ir.Value(name=f"{name}.output")
        return ir.Node(DOMAIN, self._by_body[key], list(inputs), outputs=[output], name=name), self._by_body[key]

    def remove_unused(self) -> None:
        """Remove functions that no node calls any more."""
        model = self._model
        called: set[ir.OperatorIdentifier] = set()
        stack: list[ir.Graph | ir.Function] = [model.graph]
        while stack:
            for node in ir.traversal.RecursiveGraphIterator(stack.pop()):
                key = node.op_identifier()
                if key in model.functions and key not in called:
                    called.add(key)
                    stack.append(model.functions[key])
        for key in [key for key in model.functions if key not in called]:
            del model.functions[key]


def _fingerprint(function: ir.Function) -> str:
    proto = ir.serde.serialize_function(function)
    for field in ("name", "doc_string"):
        proto.ClearField(field)
    del proto.value_info[:]
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()


def _raise_ir_version(model: ir.Model) -> None:
    """Raise the IR version to the one that has functions."""
    if model.ir_version < _INITIALIZERS_ARE_INPUTS_BEFORE:
        # there every initializer had to be an input too; from then on that makes it no constant
        for value in [v for v in model.graph.inputs if v.name in model.graph.initializers]:
            model.graph.inputs.remove(value)
    model.ir_version = _FUNCTIONS_SINCE


def convert_opset(model: ir.Model, version: int, source: str) -> ir.Model:
    """Return the model in a later opset.

    Raises
    ------
    InputError
        If the converter cannot.
    """
    old = _standard_opset(model)
    if old >= version:
        return model
    if model.functions:
        raise InputError(f"{source} has opset {old} and functions, which cannot be converted to opset {version}; use target onnx.")
    proto, payloads = skeleton(model)
    try:
        converted = onnx.version_converter.convert_version(proto, version)
        new = ir.serde.deserialize_model(converted)
    except (RuntimeError, ValueError, onnx.version_converter.ConvertError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{source} has opset {old} and cannot be converted to {version} ({reason}); use target onnx.") from error
    for graph in new.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and tensor.location == INLINE:
                value.const_value = payloads[tensor.offset or 0].tensor
    for node in ir.traversal.RecursiveGraphIterator(new.graph):
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                node.attributes[name] = ir.AttrTensor(name, payloads[attribute.value.offset or 0].tensor)
    return new
