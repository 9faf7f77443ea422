"""Insertions into ONNX models: new values that some nodes read in place of others; shapes may change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from rewriter.lower.onnx_emitter import OnnxEmitter
from rewriter.program.onnx_edit import DOMAIN, Editor, remove_dead, with_inner
from rewriter.program.onnx_parts import TypeOf, Written, write
from rewriter.program.program import OUTPUT, Insertion

__all__ = ["inserted"]


def inserted(
    model: ir.Model,
    insertions: Sequence[Insertion],
    notes: Mapping[str, Mapping[str, str]],
    types: TypeOf,
    target: str,
    inline: bool,
) -> ir.Model:
    """Return a copy of a model with new values; it shares the weights.

    Parameters
    ----------
    model
        The model; it is not changed.
    insertions
        In order.
    notes
        What is kept in the metadata of the model.
    types
        Shapes and dtypes of the values of the model.
    target, inline
        As for `rewriter.program.onnx_edit.replaced`.

    Raises
    ------
    EmitError
        If a computation cannot be written for the target.
    """
    editor = _Inserter(model.clone(), types, target, inline)
    for edit in insertions:
        editor.insert(edit)
    return editor.settled(notes)


class _Inserter(Editor):
    """A copy of a model while values are inserted."""

    def __init__(self, model: ir.Model, types: TypeOf, target: str, inline: bool) -> None:
        super().__init__(model, types, target, inline)
        self._dtypes: dict[str, str] = {}
        self._new: list[ir.Node] = []

    def insert(self, edit: Insertion) -> None:
        inputs = [self._values[name] for name in edit.inputs]
        about = dict(sorted(edit.metadata.items()))
        plain = self._inline or edit.function is None
        name = self._free(edit.name)
        body = self._written(edit, [ir.Value(name=f"input_{k}") for k in range(len(inputs))], "")
        if plain or body.domains:
            body = self._written(edit, inputs, f"{name}.")
            nodes, new = body.nodes, body.output
        else:
            call = self._functions.call(body, inputs, name, about, edit.function)
            nodes, new = [call], call.outputs[0]
            self._model.opset_imports[DOMAIN] = 1
        self._model.opset_imports.update(body.domains)
        for node in nodes:
            node.metadata_props.update({f"rewriter.{key}": text for key, text in about.items()})
        self._take(*(n.name for n in nodes), *(v.name for n in nodes for v in n.outputs))
        self._model.graph.extend(nodes)
        self._new += nodes
        new.name = name
        self._take(name)
        self._values[edit.name] = new
        self._dtypes[edit.name] = body.dtype
        if edit.instead is not None:
            self._redirect(self._values[edit.instead], new, edit.readers, set(nodes))

    def _written(self, edit: Insertion, inputs: Sequence[ir.Value], prefix: str) -> Written:
        emitter = OnnxEmitter(self._opset, self._target, prefix)
        dtypes = [self._dtypes.get(name) or self._types(name)[1] for name in edit.inputs]
        return write(inputs, list(zip(edit.shapes, dtypes, strict=True)), edit.build, emitter)

    def _redirect(
        self, old: ir.Value, new: ir.Value, readers: frozenset[str] | None, own: set[ir.Node]
    ) -> None:
        if readers is None:
            nodes = [use.node for use in old.uses()]
        else:
            producers = (self._values[name].producer() for name in sorted(readers - {OUTPUT}))
            nodes = [inner for p in producers if p is not None for inner in with_inner(p)]
        for node in dict.fromkeys(nodes):
            for at, value in enumerate(node.inputs):
                if value is old and node not in own:
                    node.replace_input_with(at, new)
        outputs = self._model.graph.outputs
        if old in outputs and (readers is None or OUTPUT in readers):
            new.type, new.shape = old.type, old.shape
            self._values[f"{old.name}"] = old
            name, old.name = old.name, f"{new.name}.before"
            new.name = name
            outputs[outputs.index(old)] = new

    def settled(self, notes: Mapping[str, Mapping[str, str]]) -> ir.Model:
        """Return the model, in order, without dead nodes and without shapes that hold no longer."""
        graph = self._model.graph
        for node in list(reversed(graph)):
            if node.graph is graph:
                remove_dead(graph, node)
        graph.sort()
        kept = {*graph.inputs, *graph.outputs, *graph.initializers.values()}
        changed: set[ir.Value] = set()
        new = set(self._new)
        for node in graph:
            if node in new or not changed.isdisjoint(v for n in with_inner(node) for v in n.inputs if v):
                changed.update(node.outputs)
        for value in changed - kept:
            value.shape = None
        self._sites.update({name: dict(sorted(about.items())) for name, about in notes.items()})
        return self.finished()
