"""ONNX files: read with the weights left on disk, written atomically. Files are hostile until proved otherwise.

Reading maps the file into memory and parses it without its weights (`rewriter.program.onnx_wire`), so
time and memory do not depend on their size; every array is a view of the map. External data is
handled the same way. Everything that later steps rely on is checked here, and each failure is an
`InputError` of one sentence.
"""

from __future__ import annotations

import mmap
import os
import secrets
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from rewriter.errors import InputError
from rewriter.program.onnx_check import check_model
from rewriter.program.onnx_wire import INLINE, WireError, cut_payloads, splice_payloads

__all__ = ["ModelFile", "Payload", "payload", "read_message", "read_model", "skeleton", "write_model"]

_LARGE = 1024  # bytes; smaller tensors stay in the message, larger ones may lie elsewhere
_MOST_INLINE = 1_800_000_000  # a protobuf message cannot exceed 2 GiB
_ALIGNMENT = 64


@dataclass(frozen=True)
class ModelFile:
    """A model as it lies on disk.

    Parameters
    ----------
    model
        The model; its large tensors are views of memory maps.
    skeleton
        The same as a message without large tensors: what shape inference reads.
    external
        Whether the file keeps weights in other files.
    files
        Every file it was read from, links resolved.
    """

    model: ir.Model
    skeleton: onnx.ModelProto
    external: bool
    files: frozenset[str]


@dataclass
class _Maps:
    """Memory maps of a model file and of the external data it may use."""

    path: Path
    maps: dict[str, memoryview] = field(default_factory=dict)

    def open(self, path: str, what: str) -> memoryview:
        """Map a regular file. Never opens a pipe or a device, which could block."""
        real = os.path.realpath(path)
        if real in self.maps:
            return self.maps[real]
        try:
            status = os.stat(real)
            if stat.S_ISDIR(status.st_mode):
                raise InputError(f"{path} is a directory; expected {what}.")
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{path} is not a regular file; expected {what}.")
            if not status.st_size:
                raise InputError(f"{path} is empty; expected {what}.")
            handle = os.open(real, os.O_RDONLY | os.O_NONBLOCK)
            try:
                data = memoryview(mmap.mmap(handle, 0, access=mmap.ACCESS_READ))
            finally:
                os.close(handle)
        except FileNotFoundError as error:
            raise InputError(f"{path} does not exist; expected {what}.") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"{path} cannot be read ({reason}); expected {what}.") from error
        self.maps[real] = data
        return data

    def external(self, tensor: ir.ExternalTensor) -> memoryview:
        """Map the file that an external tensor names, if it may be read at all."""
        location = os.fspath(tensor.location)
        name, folder = _quoted(tensor.name), self.path.parent
        if not location or os.path.isabs(location) or ".." in Path(location).parts or "\0" in location:
            raise InputError(
                f"{self.path}: tensor {name} keeps its data in {location!r}; expected a file in the model's folder, "
                "as a relative path."
            )
        path = os.path.join(folder, location)
        real = os.path.realpath(path)
        # a hub's cache links the model and its data into one other folder: that folder is the model's, too
        homes = {os.path.realpath(folder), os.path.dirname(os.path.realpath(self.path))}
        if not any(os.path.commonpath((real, home)) == home for home in homes):
            raise InputError(
                f"{self.path}: tensor {name} keeps its data in {location!r}, a link that leaves the model's folder; "
                "put the file itself there."
            )
        return self.open(path, f"the data of tensor {name} of {self.path}")


def read_model(path: str | os.PathLike[str]) -> ModelFile:
    """Read a model; weights stay on disk until they are used.

    Parameters
    ----------
    path
        An ``.onnx`` file. External data must lie in its folder.

    Raises
    ------
    InputError
        If the file, or a file it refers to, is not what a valid model of opset 11 or later needs.
    """
    maps = _Maps(Path(path))
    data = maps.open(os.fspath(path), "an ONNX model")
    try:
        proto = onnx.ModelProto.FromString(cut_payloads(data))
    except (WireError, DecodeError) as error:
        raise InputError(f"{path} is {_looks_like(data)}; expected an ONNX model.") from error
    if not proto.HasField("graph"):
        raise InputError(f"{path} is {_looks_like(data)}; expected an ONNX model.")
    model, in_order = _deserialized(proto, str(path))
    external = _map_tensors(model, data, maps)
    return ModelFile(model, proto if in_order else skeleton(model)[0], external, frozenset(maps.maps))


def read_message(proto: onnx.ModelProto, source: str) -> ModelFile:
    """Read a model from a message, with the checks that a file gets. It cannot have external data."""
    model, _ = _deserialized(proto, source)
    for value in (v for g in _all_graphs(model) for v in g.initializers.values()):
        if isinstance(value.const_value, ir.ExternalTensor):
            raise InputError(f"{source}: tensor {_quoted(value.name)} is in another file; load the model from its file.")
    _map_tensors(model, memoryview(b""), _Maps(Path(source)))
    return ModelFile(model, skeleton(model)[0], False, frozenset())


def _deserialized(proto: onnx.ModelProto, path: str) -> tuple[ir.Model, bool]:
    """Return the checked model, its nodes in topological order, and whether they were so before."""
    in_order = check_model(proto, path)
    try:
        model = ir.serde.deserialize_model(proto)
    except (ir.serde.SerdeError, RecursionError, ValueError) as error:
        raise InputError(f"{path} is not a valid ONNX model: {_root_cause(error)}.") from error
    if not in_order:
        try:
            model.graph.sort()
            for function in model.functions.values():
                function.sort()
        except ValueError as error:
            raise InputError(f"{path}: the nodes of a graph form a cycle; an ONNX graph has none.") from error
    return model, in_order


def _looks_like(data: memoryview) -> str:
    head = bytes(data[:64])
    if head.startswith(b"PK\x03\x04"):
        return "a zip archive (a .pt, .pt2 or .npz file?)"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a Python pickle, which is never loaded"
    if head.isascii() and all(byte >= 32 or byte in b"\t\n\r" for byte in head):
        return "a text file"
    return "truncated, damaged or another kind of file"


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


def _quoted(name: str | None) -> str:
    return repr((name or "")[:80])


def _map_tensors(model: ir.Model, data: memoryview, maps: _Maps) -> bool:
    """Replace external tensors by views of their files; return whether there was real external data."""
    external = False

    def mapped(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
        nonlocal external
        inline = os.fspath(tensor.location) == INLINE
        external |= not inline
        return _view(tensor, data if inline else maps.external(tensor), str(maps.path))

    for graph in _all_graphs(model):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = mapped(value.const_value)
            elif value.const_value is not None:
                _check_small(value.const_value, str(maps.path))
    for node in _all_nodes(model):
        for name, attribute in node.attributes.items():
            if attribute.is_ref() or attribute.type != ir.AttributeType.TENSOR:
                continue
            tensor = attribute.as_tensor()
            if isinstance(tensor, ir.ExternalTensor):
                node.attributes[name] = ir.AttrTensor(name, mapped(tensor), doc_string=attribute.doc_string)
            else:
                _check_small(tensor, str(maps.path))
    return external


def _view(tensor: ir.ExternalTensor, data: memoryview, path: str) -> ir.TensorProtocol:
    dims, dtype = tuple(int(n) for n in tensor.shape), tensor.dtype
    name = _quoted(tensor.name)
    if dtype in (ir.DataType.UNDEFINED, ir.DataType.STRING):
        raise InputError(f"{path}: tensor {name} has type {dtype.name}, which cannot lie outside the message.")
    if any(n < 0 for n in dims):
        raise InputError(f"{path}: tensor {name} has shape {dims}; sizes are not negative.")
    size = int(np.prod(dims, dtype=object))
    length, start = -(-size * dtype.bitwidth // 8), tensor.offset or 0
    if tensor.length is not None and tensor.length != length:
        raise InputError(
            f"{path}: tensor {name} of type {dtype.name} and shape {dims} has {tensor.length} bytes; expected {length}."
        )
    if start + length > len(data):
        raise InputError(
            f"{path}: tensor {name} takes bytes {start} to {start + length} of a file of {len(data)}; "
            "the file is truncated or belongs to another model."
        )
    about = {"shape": tensor.shape, "name": tensor.name, "doc_string": tensor.doc_string}
    raw = np.frombuffer(data, np.uint8, length, start)
    if dtype.bitwidth < 8:
        return ir.PackedTensor(raw, dtype, metadata_props=dict(tensor.metadata_props), **about)
    array = np.frombuffer(data, dtype.numpy(), size, start) if size else np.empty(0, dtype.numpy())
    return ir.Tensor(array.reshape(dims), dtype, metadata_props=dict(tensor.metadata_props), **about)


def _check_small(tensor: ir.TensorProtocol, path: str) -> None:
    """Check that a tensor in the message has the elements that its shape promises."""
    dims = tuple(int(n) for n in tensor.shape)
    if any(n < 0 for n in dims):
        raise InputError(f"{path}: tensor {_quoted(tensor.name)} has shape {dims}; sizes are not negative.")
    size = int(np.prod(dims, dtype=object))
    if isinstance(tensor, ir.StringTensor):
        found = len(tensor.string_data())
    elif isinstance(tensor, ir.serde.TensorProtoTensor) and tensor.raw.HasField("raw_data"):
        found = len(tensor.raw.raw_data) if tensor.dtype != ir.DataType.UNDEFINED else -1
        size = -(-size * tensor.dtype.bitwidth // 8)
    else:
        try:
            found = tensor.numpy().size
        except (ValueError, TypeError, OverflowError):
            found = -1
    if found != size:
        raise InputError(
            f"{path}: the data of tensor {_quoted(tensor.name)} does not fit its type {tensor.dtype.name} and "
            f"its shape {dims}."
        )


def _all_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    yield from model.graphs()
    for function in model.functions.values():
        yield from function.subgraphs()


def _all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from ir.traversal.RecursiveGraphIterator(model.graph)
    for function in model.functions.values():
        yield from ir.traversal.RecursiveGraphIterator(function)


@dataclass(frozen=True)
class Payload:
    """A large tensor that was left out of a skeleton; ``initializer`` names it in the main graph, else None."""

    tensor: ir.TensorProtocol
    initializer: str | None
    attribute: bool


@contextmanager
def _payloads_out(model: ir.Model) -> Iterator[list[Payload]]:
    """Put stubs in the place of a model's large tensors; the offset of a stub is its index in the list."""
    out: list[Payload] = []
    values: list[tuple[ir.Value, ir.TensorProtocol]] = []
    attributes: list[tuple[ir.Node, ir.Attr]] = []

    def stub(tensor: ir.TensorProtocol, initializer: str | None, attribute: bool) -> ir.ExternalTensor:
        out.append(Payload(tensor, initializer, attribute))
        return ir.ExternalTensor(
            INLINE, len(out) - 1, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape),
            name=tensor.name or "", doc_string=tensor.doc_string, metadata_props=dict(tensor.metadata_props),
        )  # fmt: skip

    try:
        for graph in _all_graphs(model):
            for value in graph.initializers.values():
                tensor = value.const_value
                if tensor is not None and _movable(tensor):
                    values.append((value, tensor))
                    tensor.name = value.name
                    value.const_value = stub(tensor, value.name if graph is model.graph else None, False)
        for node in _all_nodes(model):
            for name, attribute in node.attributes.items():
                if attribute.is_ref() or attribute.type != ir.AttributeType.TENSOR:
                    continue
                tensor = attribute.as_tensor()
                if _movable(tensor):
                    attributes.append((node, attribute))
                    node.attributes[name] = ir.AttrTensor(name, stub(tensor, None, True), attribute.doc_string)
        yield out
    finally:
        for value, tensor in values:
            value.const_value = tensor
        for node, attribute in attributes:
            node.attributes[attribute.name] = attribute


def _movable(tensor: ir.TensorProtocol) -> bool:
    small = isinstance(tensor, ir.serde.TensorProtoTensor | ir.StringTensor)
    return not small and tensor.nbytes > _LARGE


def skeleton(model: ir.Model) -> tuple[onnx.ModelProto, list[Payload]]:
    """Return the model as a message without its large tensors, and these tensors.

    A large tensor is external data at `INLINE` whose offset is its index in the list.
    """
    with _payloads_out(model) as payloads:
        return ir.serde.serialize_model(model), payloads


def payload(tensor: ir.TensorProtocol) -> bytes | memoryview:
    """Return the raw data of a tensor, not copied where it lies in memory as the format wants it."""
    if tensor.dtype.bitwidth < 8 or not isinstance(tensor, ir.Tensor):
        return tensor.tobytes()
    return memoryview(np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8))


def write_model(
    model: ir.Model, path: str | os.PathLike[str], external: bool = False, sources: Collection[str] = ()
) -> None:
    """Write a model: completely, or not at all.

    Parameters
    ----------
    model
        What to write.
    path
        The file. Existing output is replaced.
    external
        Put the weights into ``<file name>.data`` beside it. Done anyway where they exceed 1.8 GB.
    sources
        Files that must not be written to (links resolved): those the model was read from.

    Raises
    ------
    InputError
        If the place is not writable, or is a source.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a regular file; expected the name of a file to write.")
    proto, payloads = skeleton(model)
    external |= sum(p.tensor.nbytes for p in payloads) > _MOST_INLINE
    data_path = path.with_name(path.name + ".data")
    for target in (path, data_path) if external else (path,):
        if os.path.realpath(target) in sources:
            raise InputError(f"{target} belongs to the model that was read, which is never changed; name another file.")
    outside = {k: p.tensor for k, p in enumerate(payloads) if external and not p.attribute}
    place: dict[int, tuple[int, int]] = {}
    end = 0
    for key, tensor in outside.items():
        start = -(-end // _ALIGNMENT) * _ALIGNMENT
        end = start + tensor.nbytes
        place[key] = (start, tensor.nbytes)
    _relocate(proto, data_path.name, place)
    if sum(p.tensor.nbytes for k, p in enumerate(payloads) if k not in outside) > _MOST_INLINE:
        raise InputError(f"{path}: constants inside nodes exceed {_MOST_INLINE} bytes, which one ONNX file cannot hold.")
    message = splice_payloads(
        proto.SerializeToString(deterministic=True), lambda key: payload(payloads[key].tensor)
    )
    try:
        if outside:
            with _replacing(data_path) as file:
                for key, tensor in outside.items():
                    file.seek(place[key][0])
                    file.write(payload(tensor))
                with _replacing(path) as model_file:
                    model_file.writelines(message)
                    # the data must be in its place before the model that refers to it is
                    file.commit()
        else:
            with _replacing(path) as file:
                file.writelines(message)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{path} cannot be written ({reason}); name a file in a writable folder.") from error


def _relocate(proto: onnx.ModelProto, location: str, place: dict[int, tuple[int, int]]) -> None:
    """Point the stubs in ``place`` to their offset and length in the data file."""
    for tensor in _initializers(proto.graph, [n for f in proto.functions for n in f.node]):
        entries = {entry.key: entry for entry in tensor.external_data}
        if "location" not in entries or entries["location"].value != INLINE:
            continue
        key = int(entries["offset"].value)
        if key in place:
            entries["location"].value = location
            entries["offset"].value, entries["length"].value = map(str, place[key])


def _initializers(graph: onnx.GraphProto, more: Iterable[onnx.NodeProto] = ()) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in (*graph.node, *more):
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield from _initializers(inner)


class _Replacement:
    """A new file beside its target, which takes the target's place when it is complete."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self._temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.tmp")
        self._done = False
        self._file = open(self._temporary, "xb")

    def seek(self, offset: int) -> None:
        self._file.seek(offset)

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)

    def writelines(self, chunks: Iterable[bytes | memoryview]) -> None:
        self._file.writelines(chunks)

    def commit(self) -> None:
        if not self._done:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._temporary, self.target)
            self._done = True

    def discard(self) -> None:
        if not self._done:
            self._file.close()
            self._temporary.unlink(missing_ok=True)


@contextmanager
def _replacing(target: Path) -> Iterator[_Replacement]:
    file = _Replacement(target)
    try:
        yield file
        file.commit()
    finally:
        file.discard()
