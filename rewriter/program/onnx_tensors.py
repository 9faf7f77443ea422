"""The large tensors of an ONNX model, apart from its structure: views of files, and messages without them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
import onnx_ir as ir

from rewriter.errors import InputError
from rewriter.program.onnx_wire import INLINE

__all__ = [
    "Payload",
    "attach",
    "check_data",
    "every_tensor",
    "inner_graphs",
    "payload",
    "placed",
    "replace_tensors",
    "root_cause",
    "skeleton",
]

_LARGE = 1024  # bytes; smaller tensors stay in the message

Replace = Callable[[ir.TensorProtocol, str | None, bool], ir.TensorProtocol | None]
"""From a tensor, the name of the main graph's initializer it is, and whether it is an attribute."""


def replace_tensors(model: ir.Model, replace: Replace) -> list[Callable[[], None]]:
    """Replace the tensors of a model where ``replace`` gives another; return what undoes it."""
    undo: list[Callable[[], None]] = []
    graphs: list[ir.Graph | ir.Function] = [*reversed(model.functions.values()), model.graph]
    while graphs:
        graph = graphs.pop()
        for value in graph.initializers.values() if isinstance(graph, ir.Graph) else ():
            old = value.const_value
            new = None if old is None else replace(old, value.name if graph is model.graph else None, False)
            if new is not None:
                value.const_value = new
                undo.append(partial(setattr, value, "const_value", old))
        for node in graph:
            for attribute in list(node.attributes.values()):
                graphs += inner_graphs(attribute)
                if attribute.is_ref() or attribute.type != ir.AttributeType.TENSOR:
                    continue
                new = replace(attribute.as_tensor(), None, True)
                if new is not None:
                    node.attributes[attribute.name] = ir.AttrTensor(attribute.name, new, attribute.doc_string)
                    undo.append(partial(node.attributes.__setitem__, attribute.name, attribute))
    return undo


def inner_graphs(attribute: ir.Attr) -> Sequence[ir.Graph]:
    """Return the graphs in an attribute."""
    if attribute.is_ref():
        return ()
    if attribute.type == ir.AttributeType.GRAPH:
        return (attribute.as_graph(),)
    return attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else ()


# reading


def every_tensor(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield the tensors of a message: initializers and attributes, those of inner graphs included."""
    graphs, nodes = [model.graph], [node for function in model.functions for node in function.node]
    while graphs:
        graph = graphs.pop()
        yield from graph.initializer
        nodes += graph.node
        for node in nodes:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR and not attribute.ref_attr_name:
                    yield attribute.t
                elif attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
                    graphs += (attribute.g, *attribute.graphs)
        nodes = []


def placed(
    tensor: ir.TensorProtocol, data: Callable[[ir.ExternalTensor], memoryview], path: str
) -> ir.TensorProtocol:
    """Return a tensor of a message; an external one is a view of the bytes that it lies in.

    Parameters
    ----------
    tensor
        The tensor as the message describes it.
    data
        Gives the file that a tensor lies in.
    path
        What error messages call the model.

    Raises
    ------
    InputError
        If the data of the tensor does not fit its type and shape, or lies outside its file.
    """
    return _view(tensor, data(tensor), path) if isinstance(tensor, ir.ExternalTensor) else tensor


def check_data(tensor: onnx.TensorProto, path: str) -> None:
    """Check that a tensor whose data is in the message has the elements that its shape promises.

    Raises
    ------
    InputError
        If it has more or fewer.
    """
    dims, dtype = _dims(tensor.dims, tensor.name, path), ir.DataType(tensor.data_type)
    size = math.prod(dims)
    try:
        if dtype == ir.DataType.STRING:
            found = len(tensor.string_data)
        elif tensor.HasField("raw_data"):
            found, size = len(tensor.raw_data), -(-size * dtype.bitwidth // 8)
        else:
            found = ir.serde.deserialize_tensor(tensor).numpy().size
    except (ValueError, TypeError, OverflowError):
        found = -1
    if found != size:
        raise InputError(
            f"{path}: the data of tensor {_quoted(tensor.name)} does not fit its type {dtype.name} and "
            f"its shape {dims}."
        )


def _dims(sizes: Iterable[int], name: str | None, path: str) -> tuple[int, ...]:
    dims = tuple(sizes)
    if any(n < 0 for n in dims):
        raise InputError(f"{path}: tensor {_quoted(name)} has shape {dims}; sizes are not negative.")
    return dims


def _quoted(name: str | None) -> str:
    return repr((name or "")[:80])


def _view(tensor: ir.ExternalTensor, data: memoryview, path: str) -> ir.TensorProtocol:
    name, dtype = _quoted(tensor.name), tensor.dtype
    dims = _dims(map(int, tensor.shape.numpy()), tensor.name, path)
    if dtype in (ir.DataType.UNDEFINED, ir.DataType.STRING):
        raise InputError(
            f"{path}: tensor {name} has type {dtype.name}, which cannot lie outside the message."
        )
    size = math.prod(dims)
    length, start = -(-size * dtype.bitwidth // 8), tensor.offset or 0
    if tensor.length is not None and tensor.length != length:
        raise InputError(
            f"{path}: tensor {name} of type {dtype.name} and shape {dims} has {tensor.length} bytes; "
            f"expected {length}."
        )
    if start + length > len(data):
        raise InputError(
            f"{path}: tensor {name} takes bytes {start} to {start + length} of a file of {len(data)}; "
            "the file is truncated or belongs to another model."
        )
    about = dict(tensor.metadata_props)
    shape = ir.Shape(dims)
    if dtype.bitwidth < 8:
        raw = np.frombuffer(data, np.uint8, length, start)
        return ir.PackedTensor(
            raw, dtype, shape=shape, name=tensor.name, doc_string=tensor.doc_string, metadata_props=about
        )
    array = np.frombuffer(data, dtype.numpy(), size, start) if size else np.empty(0, dtype.numpy())
    return ir.Tensor(
        array.reshape(dims),
        dtype,
        shape=shape,
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=about,
    )


def root_cause(error: BaseException) -> str:
    """Return what an error began with, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


# writing


@dataclass(frozen=True)
class Payload:
    """A large tensor that was left out of a message.

    Parameters
    ----------
    tensor
        The tensor.
    initializer
        Its name, if it is an initializer of the main graph.
    attribute
        Whether it belongs to a node.
    """

    tensor: ir.TensorProtocol
    initializer: str | None
    attribute: bool


def skeleton(model: ir.Model) -> tuple[onnx.ModelProto, list[Payload]]:
    """Return the model as a message without its large tensors, and these tensors.

    A large tensor is external data at `INLINE` whose offset is its index in the list.

    Raises
    ------
    InputError
        If the model holds something that the format cannot say.
    """
    out: list[Payload] = []

    def stub(tensor: ir.TensorProtocol, initializer: str | None, attribute: bool) -> ir.TensorProtocol | None:
        small = isinstance(tensor, ir.serde.TensorProtoTensor | ir.StringTensor)
        if small or tensor.nbytes <= _LARGE:
            return None
        out.append(Payload(tensor, initializer, attribute))
        return ir.ExternalTensor(
            INLINE,
            len(out) - 1,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=tensor.name or "",
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
        )

    undo = replace_tensors(model, stub)
    try:
        return ir.serde.serialize_model(model), out
    except ir.serde.SerdeError as error:
        raise InputError(f"The model cannot be written as ONNX: {root_cause(error)}.") from error
    finally:
        for restore in undo:
            restore()


def attach(model: ir.Model, payloads: list[Payload]) -> None:
    """Put the tensors that `skeleton` left out back into a model made of its message."""

    def found(
        tensor: ir.TensorProtocol, initializer: str | None, attribute: bool
    ) -> ir.TensorProtocol | None:
        return payloads[tensor.offset or 0].tensor if isinstance(tensor, ir.ExternalTensor) else None

    replace_tensors(model, found)


def payload(tensor: ir.TensorProtocol) -> bytes | memoryview:
    """Return the raw data of a tensor, not copied where it lies in memory as the format wants it."""
    if tensor.dtype.bitwidth < 8 or not isinstance(tensor, ir.Tensor):
        return tensor.tobytes()
    return np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data
