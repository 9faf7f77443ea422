"""Reading ONNX files with the weights left on disk. Files are hostile until proved otherwise.

A file is mapped into memory and parsed without its weights (`rewriter.program.onnx_wire`), so time
and memory do not depend on their size; every array is a view of the map. External data is handled
the same way. Everything that later steps rely on is checked here, and each failure is an
`InputError` of one sentence.
"""

from __future__ import annotations

import mmap
import os
import stat
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError

from rewriter.errors import InputError
from rewriter.program.onnx_check import check_model
from rewriter.program.onnx_message import Message
from rewriter.program.onnx_tensors import check_data, every_tensor, placed, replace_tensors, root_cause
from rewriter.program.onnx_wire import INLINE, WireError, cut_payloads

__all__ = ["ModelFile", "read_message", "read_model"]


@dataclass(frozen=True)
class ModelFile:
    """A model as it lies on disk.

    Parameters
    ----------
    path
        What error messages call it.
    message
        The model without its large tensors, which are read as views of memory maps.
    external
        Whether the file keeps weights in other files.
    files
        Every file it was read from, links resolved.
    """

    path: str
    message: Message
    external: bool
    files: frozenset[str]

    @cached_property
    def model(self) -> ir.Model:
        """The model, to edit and to run.

        Raises
        ------
        InputError
            If a part of the message that nothing else has read is not valid.
        """
        model = _deserialized(self.message.proto, self.path)
        replace_tensors(model, lambda tensor, *_: self.message.place(tensor))
        return model


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
    return _read(maps.open(os.fspath(path), "an ONNX model"), str(path), maps)


def read_message(message: onnx.ModelProto, source: str) -> ModelFile:
    """Read a model from a message, with the checks that a file gets. It cannot have external data."""
    try:
        data = memoryview(message.SerializeToString())
    except (ValueError, EncodeError) as error:
        raise InputError(f"{source} is too large for a message ({error}); load it from a file.") from error
    return _read(data, source, None)


def _read(data: memoryview, path: str, maps: _Maps | None) -> ModelFile:
    """Read and check a model; without ``maps`` it must not have external data."""
    try:
        proto = onnx.ModelProto.FromString(cut_payloads(data))
    except (WireError, DecodeError) as error:
        raise InputError(f"{path} is {_looks_like(data)}; expected an ONNX model.") from error
    if not proto.HasField("graph"):
        raise InputError(f"{path} is {_looks_like(data)}; expected an ONNX model.")
    if not check_model(proto, path):
        proto = _sorted(proto, path)
    external = False

    def file_of(tensor: ir.ExternalTensor) -> memoryview:
        nonlocal external
        if os.fspath(tensor.location) == INLINE:
            return data
        if maps is None:
            raise InputError(
                f"{path}: tensor {tensor.name!r} is in another file; load the model from its file."
            )
        external = True
        return maps.external(tensor)

    message = Message(proto, lambda tensor: placed(tensor, file_of, path))
    try:
        for tensor in every_tensor(proto):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                message.tensor(tensor)
            else:
                check_data(tensor, path)
    except (ir.serde.SerdeError, ValueError) as error:
        raise InputError(f"{path} is not a valid ONNX model: {root_cause(error)}.") from error
    return ModelFile(path, message, external, frozenset(() if maps is None else maps.maps))


@dataclass
class _Maps:
    """Memory maps of a model file and of the external data it may use."""

    path: Path
    maps: dict[str, memoryview] = field(default_factory=dict)

    def open(self, path: str, what: str) -> memoryview:
        """Map a regular file. Never opens a pipe or a device, which could block."""
        try:
            real = os.path.realpath(path)
            if real not in self.maps:
                self.maps[real] = _mapped(path, real, what)
        except FileNotFoundError as error:
            raise InputError(f"{path} does not exist; expected {what}.") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"{path} cannot be read ({reason}); expected {what}.") from error
        return self.maps[real]

    def external(self, tensor: ir.ExternalTensor) -> memoryview:
        """Map the file that an external tensor names, if it may be read at all."""
        location, folder = os.fspath(tensor.location), self.path.parent
        name = repr((tensor.name or "")[:80])
        if not location or os.path.isabs(location) or ".." in Path(location).parts or "\0" in location:
            raise InputError(
                f"{self.path}: tensor {name} keeps its data in {location[:200]!r}; expected a file in the "
                "model's folder, as a relative path."
            )
        path = os.path.join(folder, location)
        real = os.path.realpath(path)
        # a hub's cache links the model and its data into one other folder: that is the model's, too
        homes = {os.path.realpath(folder), os.path.dirname(os.path.realpath(self.path))}
        if not any(os.path.commonpath((real, home)) == home for home in homes):
            raise InputError(
                f"{self.path}: tensor {name} keeps its data in {location[:200]!r}, a link that leaves the "
                "model's folder; put the file itself there."
            )
        return self.open(path, f"the data of tensor {name} of {self.path}")


def _mapped(path: str, real: str, what: str) -> memoryview:
    status = os.stat(real)
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{path} is a directory; expected {what}.")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is not a regular file; expected {what}.")
    if not status.st_size:
        raise InputError(f"{path} is empty; expected {what}.")
    handle = os.open(real, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return memoryview(mmap.mmap(handle, 0, access=mmap.ACCESS_READ))
    finally:
        os.close(handle)


def _deserialized(proto: onnx.ModelProto, path: str) -> ir.Model:
    try:
        return ir.serde.deserialize_model(proto)
    except (ir.serde.SerdeError, RecursionError, ValueError) as error:
        raise InputError(f"{path} is not a valid ONNX model: {root_cause(error)}.") from error


def _sorted(proto: onnx.ModelProto, path: str) -> onnx.ModelProto:
    """Return the message with its nodes in topological order."""
    model = _deserialized(proto, path)
    try:
        model.graph.sort()
        for function in model.functions.values():
            function.sort()
    except ValueError as error:
        raise InputError(f"{path}: the nodes of a graph form a cycle; an ONNX graph has none.") from error
    return ir.serde.serialize_model(model)


def _looks_like(data: memoryview) -> str:
    head = bytes(data[:64])
    if head.startswith(b"PK\x03\x04"):
        return "a zip archive (a .pt, .pt2 or .npz file?)"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a Python pickle, which is never loaded"
    if head.isascii() and all(byte >= 32 or byte in b"\t\n\r" for byte in head):
        return "a text file"
    return "truncated, damaged or another kind of file"
