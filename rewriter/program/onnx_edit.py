"""Edits of ONNX models: a new computation in the place of another, as a function or as plain nodes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from itertools import count

import onnx_ir as ir

from rewriter.lower.errors import EmitError
from rewriter.lower.onnx_emitter import OnnxEmitter
from rewriter.program.onnx_parts import TypeOf, Written, main_values, standard_opset, write
from rewriter.program.onnx_version import raise_ir_version, settle_initializers
from rewriter.program.program import Replacement

__all__ = ["DOMAIN", "SITES", "Editor", "remove_dead", "replaced", "with_inner"]

DOMAIN = "rewriter"
"""Domain of the functions that replacements become."""

SITES = "rewriter.sites"
"""Model metadata that lists what was rewritten, as JSON."""

_FUNCTIONS_SINCE = 8  # IR version

_LARGE = 1 << 10
"""Bytes from which a constant that an edit writes is an initializer, which may lie in a data file."""


def replaced(
    model: ir.Model, replacements: Sequence[Replacement], types: TypeOf, target: str, inline: bool
) -> ir.Model:
    """Return a copy of a model with values computed in new ways; it shares the weights.

    Parameters
    ----------
    model
        The model; it is not changed.
    replacements
        The edits.
    types
        Shapes and dtypes of the values that the edits name.
    target
        What to write for, as for `rewriter.lower.onnx_emitter.OnnxEmitter`.
    inline
        Write plain nodes, not functions.

    Raises
    ------
    EmitError
        If a computation cannot be written for the target.
    ValueError
        If a replacement names values that the graph does not compute.
    """
    editor = Editor(model.clone(), types, target, inline)
    for edit in replacements:
        editor.apply(edit)
    return editor.finished()


class Editor:
    """A copy of a model while it is edited."""

    def __init__(self, model: ir.Model, types: TypeOf, target: str, inline: bool) -> None:
        self._model = model
        self._types = types
        self._target = target
        self._inline = inline
        self._opset = standard_opset(model)
        self._values = main_values(model)
        self._taken: set[str] = set()
        self._take(*self._values, *(n.name for n in model.graph))
        self._functions = _Functions(model)
        self._sites: dict[str, dict[str, str]] = json.loads(model.metadata_props.get(SITES, "{}"))

    def apply(self, edit: Replacement) -> None:
        """Compute a value in a new way."""
        old = self._values.get(edit.output)
        producer = None if old is None else old.producer()
        if old is None or producer is None:
            raise ValueError(f"{edit.output!r} is not computed by a node of the graph: it cannot be replaced")
        inputs = [self._values[name] for name in edit.inputs]
        name = self._free(edit.name)
        about = dict(sorted(edit.metadata.items()))
        body = self._write(edit, [ir.Value(name=f"input_{k}") for k in range(len(inputs))])
        # the types of an operator that ONNX does not define cannot be inferred through a function
        if self._inline or body.domains:
            body = self._write(edit, inputs, f"{name}.")
            nodes, new = body.nodes, body.output
        else:
            call = self._functions.call(body, inputs, name, about)
            nodes, new = [call], call.outputs[0]
            about["function"] = call.op_type
            self._model.opset_imports[DOMAIN] = 1
        self._model.opset_imports.update(body.domains)
        for node in nodes:
            node.metadata_props.update({f"rewriter.{key}": text for key, text in about.items()})
            node.metadata_props["rewriter.site"] = edit.name
        self._take(*(n.name for n in nodes), *(v.name for n in nodes for v in n.outputs))
        self._model.graph.insert_before(producer, nodes)
        _take_over(old, new, f"{name}.replaced")
        self._values[edit.output] = new
        self._sites[edit.name] = about
        remove_dead(self._model.graph, producer)

    def finished(self) -> ir.Model:
        """Return the model, with its notes."""
        model = self._model
        if self._sites:
            model.metadata_props[SITES] = json.dumps(self._sites, sort_keys=True)
        self._functions.remove_unused()
        if model.functions:
            raise_ir_version(model, _FUNCTIONS_SINCE)
        _make_initializers(model.graph)
        settle_initializers(model)
        return model

    def _write(self, edit: Replacement, inputs: Sequence[ir.Value], prefix: str = "") -> Written:
        emitter = OnnxEmitter(self._opset, self._target, prefix)
        body = write(inputs, [self._types(name) for name in edit.inputs], edit.build, emitter)
        wanted = self._types(edit.output)[1]
        if body.dtype != wanted:
            raise EmitError(
                f"The new computation of {edit.output!r} gives {body.dtype}; the model needs {wanted}."
            )
        return body

    def _free(self, name: str) -> str:
        """Return ``name``, or ``name.1``, … such that nothing has it, alone or before a dot."""
        return next(free for k in count() if (free := f"{name}.{k}" if k else name) not in self._taken)

    def _take(self, *names: str | None) -> None:
        """Note that names are in use, alone and as what stands before a dot."""
        for name in filter(None, names):
            self._taken.add(name)
            self._taken.update(name[: dot.start()] for dot in re.finditer(r"\.", name))


def _make_initializers(graph: ir.Graph) -> None:
    """Make initializers of the large constants that edits wrote."""
    for node in list(graph):
        if node.op_type != "Constant" or not any(key.startswith("rewriter.") for key in node.metadata_props):
            continue
        known, (value,) = node.attributes["value"].as_tensor(), node.outputs
        if known.nbytes < _LARGE or value.is_graph_output():
            continue
        shape, kind = ir.Shape(known.shape.numpy()), ir.TensorType(known.dtype)
        lifted = ir.Value(name=value.name, type=kind, shape=shape, const_value=known)
        value.replace_all_uses_with(lifted)
        graph.remove(node)
        graph.register_initializer(lifted)


def _take_over(old: ir.Value, new: ir.Value, aside: str) -> None:
    """Give ``new`` the readers, the name and the type of ``old``, which is called ``aside`` from now on."""
    new.type, new.shape, new.doc_string = old.type, old.shape, old.doc_string
    new.metadata_props.update(old.metadata_props)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    name, old.name = old.name, aside
    new.name = name


def remove_dead(graph: ir.Graph, first: ir.Node) -> None:
    """Remove a node if nobody reads its outputs any more, and what only it needed."""
    stack = [first]
    while stack:
        node = stack.pop()
        if node.graph is not graph or any(v.uses() or v.is_graph_output() for v in node.outputs):
            continue
        inner = with_inner(node)
        read = {v for n in inner for v in n.inputs if v is not None}
        for reader in inner:
            for at in range(len(reader.inputs)):
                reader.replace_input_with(at, None)
        graph.remove(node)
        stack.extend(p for v in read if (p := v.producer()) is not None)
        for value in read:
            kept = value.uses() or value.is_graph_output() or value.is_graph_input()
            if value.is_initializer() and value.graph is graph and not kept:
                del graph.initializers[value.name or ""]


def with_inner(node: ir.Node) -> list[ir.Node]:
    """Return a node and the nodes of its inner graphs."""
    found = [node]
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            found += ir.traversal.RecursiveGraphIterator(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found += (n for g in attribute.as_graphs() for n in ir.traversal.RecursiveGraphIterator(g))
    return found


class _Functions:
    """The functions of a model that replacements become; equal bodies are one function."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._by_body = {_fingerprint(f): f.name for f in model.functions.values() if f.domain == DOMAIN}

    def call(
        self,
        body: Written,
        inputs: Sequence[ir.Value],
        name: str,
        about: Mapping[str, str],
        base: str | None = None,
    ) -> ir.Node:
        """Return a node that calls the function with this body, which is made if there is none yet."""
        form = re.sub(r"\W+", "_", about.get("form", "").partition(":")[0]).strip("_")
        base = base or (f"{form}_attention" if form else "replacement")
        imports = {"": standard_opset(self._model)}
        graph = ir.Graph(body.inputs, [body.output], nodes=body.nodes, opset_imports=imports, name=base)
        function = ir.Function(DOMAIN, base, graph=graph, attributes=[])
        key = _fingerprint(function)
        if key not in self._by_body:
            taken = {f.name for f in self._model.functions.values() if f.domain == DOMAIN}
            function.name = next(free for k in count() if (free := f"{base}_{k}") not in taken)
            settings = ", ".join(f"{k} {about[k]}" for k in ("form", "fidelity") if k in about)
            function.doc_string = f"Written by rewriter: {settings}." if settings else "Written by rewriter."
            self._model.functions[function.identifier()] = function
            self._by_body[key] = function.name
        return ir.Node(
            DOMAIN,
            self._by_body[key],
            list(inputs),
            outputs=[ir.Value(name=f"{name}.output")],
            name=name,
        )

    def remove_unused(self) -> None:
        """Remove functions that no node calls any more."""
        functions = self._model.functions
        called: set[ir.OperatorIdentifier] = set()
        stack: list[ir.Graph | ir.Function] = [self._model.graph]
        while stack:
            for node in ir.traversal.RecursiveGraphIterator(stack.pop()):
                key = node.op_identifier()
                if key in functions and key not in called:
                    called.add(key)
                    stack.append(functions[key])
        for key in [key for key in functions if key not in called]:
            del functions[key]


def _fingerprint(function: ir.Function) -> str:
    proto = ir.serde.serialize_function(function)
    for field in ("name", "doc_string"):
        proto.ClearField(field)
    del proto.value_info[:]
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
