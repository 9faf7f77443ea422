"""An ONNX model as its message without large tensors: what is read of it until it is edited or run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir as ir

from rewriter.program.onnx_tensors import skeleton

__all__ = ["Message", "NativeNode", "inner_graphs", "message_of"]


@dataclass(frozen=True)
class Message:
    """A model.

    Parameters
    ----------
    proto
        The message; its nodes are in order, and its large tensors lie elsewhere.
    place
        Takes a tensor as the message describes it, and returns it with its numbers.
    """

    proto: onnx.ModelProto
    place: Callable[[ir.TensorProtocol], ir.TensorProtocol]

    def tensor(self, proto: onnx.TensorProto) -> ir.TensorProtocol:
        """Return a tensor of the message."""
        return self.place(ir.serde.deserialize_tensor(proto))


def message_of(model: ir.Model) -> Message:
    """Return a model as a message.

    Raises
    ------
    InputError
        If the model holds something that the format cannot say.
    """
    proto, payloads = skeleton(model)

    def place(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        return payloads[tensor.offset or 0].tensor if isinstance(tensor, ir.ExternalTensor) else tensor

    return Message(proto, place)


class NativeNode:
    """A node of a message.

    Parameters
    ----------
    proto
        The node.
    message
        What it is a node of.
    """

    __slots__ = ("_message", "outputs", "proto")

    def __init__(self, proto: onnx.NodeProto, message: Message) -> None:
        self.proto = proto
        self.outputs: tuple[str, ...] = tuple(proto.output)
        """Names of the results by position, ``""`` where one is left out."""
        self._message = message

    def attributes(self) -> dict[str, Any]:
        """Return the attributes that are numbers, text, tuples of these, or tensors."""
        found = {}
        for attribute in self.proto.attribute:
            read = _READ.get(attribute.type)
            if read is not None and not attribute.ref_attr_name:
                found[attribute.name] = read(attribute, self._message)
        return found

    @property
    def metadata_props(self) -> dict[str, str]:
        """Notes on the node."""
        return {entry.key: entry.value for entry in self.proto.metadata_props}

    def holds_graph(self) -> bool:
        """Whether the operator has a graph of its own."""
        return any(a.type in _GRAPHS for a in self.proto.attribute)

    def whole(self) -> onnx.NodeProto:
        """Return a copy that holds all its tensors."""
        copy = onnx.NodeProto()
        copy.CopyFrom(self.proto)
        for attribute in copy.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                attribute.t.CopyFrom(ir.serde.serialize_tensor(self._message.tensor(attribute.t)))
        return copy


def inner_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs in the attributes of a node."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)

_READ: dict[int, Callable[[onnx.AttributeProto, Message], Any]] = {
    onnx.AttributeProto.FLOAT: lambda a, _: a.f,
    onnx.AttributeProto.INT: lambda a, _: a.i,
    onnx.AttributeProto.STRING: lambda a, _: _text(a.s),
    onnx.AttributeProto.FLOATS: lambda a, _: tuple(a.floats),
    onnx.AttributeProto.INTS: lambda a, _: tuple(a.ints),
    onnx.AttributeProto.STRINGS: lambda a, _: tuple(map(_text, a.strings)),
    onnx.AttributeProto.TENSOR: lambda a, message: message.tensor(a.t),
}
