"""Parts of a model that differ in nothing but names are compiled once.

A model repeats its layers, and what is cut out of one of them or written for it is often, but for the names
of its values, what was compiled for another.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx_ir as ir

from rewriter.errors import InputError
from rewriter.program.onnx_session import Session
from rewriter.program.onnx_tensors import inner_graphs

__all__ = ["Compiled"]

_SESSIONS = 64
"""How many are kept, the ones that were used last."""

_SMALL = 4096
"""Bytes of constants that a part may hold to be compared with others."""


class Compiled:
    """Compiles parts of one model, each kind of part once."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[bytes, Session] = OrderedDict()

    def __call__(self, part: ir.Model, source: str) -> Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]:
        """Return ONNX Runtime's function of a part.

        Parameters
        ----------
        part
            A model of its own.
        source
            What error messages call it.

        Raises
        ------
        InputError
            As `rewriter.program.onnx_session.Session`.
        """
        if not _is_plain(part):
            return Session(part, source)
        message = ir.serde.serialize_model(part)
        names = _rename(message.graph)
        key = message.SerializeToString(deterministic=True)
        if key not in self._sessions:
            try:
                self._sessions[key] = Session(ir.serde.deserialize_model(message), source)
            except InputError:
                return Session(part, source)  # fails, too, and says so with the names of the model
            if len(self._sessions) > _SESSIONS:
                self._sessions.popitem(last=False)
        self._sessions.move_to_end(key)
        session = self._sessions[key]

        def run(arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
            return session({names[name]: array for name, array in arrays.items() if name in names})

        return run


def _is_plain(part: ir.Model) -> bool:
    """Whether a part is nodes and small constants, without functions and inner graphs."""
    size = sum(v.const_value.nbytes for v in part.graph.initializers.values() if v.const_value is not None)
    for node in part.graph:
        for attribute in node.attributes.values():
            if inner_graphs(attribute):
                return False
            if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                size += attribute.as_tensor().nbytes
    return not part.functions and size <= _SMALL


def _rename(graph: onnx.GraphProto) -> dict[str, str]:
    """Number the values of a graph, forget what is said of it, and return the new names by the old ones."""
    names: dict[str, str] = {"": ""}  # what an operator is not given, or nobody reads
    for value in (*graph.input, *graph.initializer):
        value.name = names.setdefault(value.name, f"v{len(names)}")
        value.doc_string = ""
    for node in graph.node:
        for field in (node.input, node.output):
            field[:] = [names.setdefault(name, f"v{len(names)}") for name in field]
        node.name = node.doc_string = ""
        del node.metadata_props[:]
    for value in graph.output:
        value.name = names[value.name]
    del graph.value_info[:], graph.quantization_annotation[:]
    return names
