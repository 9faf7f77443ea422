"""Writing ONNX files: complete or not there, the same bytes for the same model."""

from __future__ import annotations

import os
import secrets
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir

from rewriter.errors import InputError
from rewriter.program.onnx_tensors import payload, skeleton
from rewriter.program.onnx_wire import INLINE, splice_payloads

__all__ = ["write_model"]

_MOST_INLINE = 1_800_000_000  # bytes; a protobuf message cannot exceed 2 GiB
_ALIGNMENT = 64


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
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path} is not a regular file; expected the name of a file to write.")
    proto, payloads = skeleton(model)
    external |= sum(p.tensor.nbytes for p in payloads) > _MOST_INLINE
    data_path = path.with_name(path.name + ".data")
    for target in (path, data_path) if external else (path,):
        if os.path.realpath(target) in sources:
            raise InputError(
                f"{target} belongs to the model that was read, which is never changed; name another file."
            )
    outside = {k: p.tensor for k, p in enumerate(payloads) if external and not p.attribute}
    if sum(p.tensor.nbytes for k, p in enumerate(payloads) if k not in outside) > _MOST_INLINE:
        raise InputError(
            f"{path}: constants inside nodes exceed {_MOST_INLINE} bytes, which no ONNX file can hold."
        )
    place = _layout(outside)
    _relocate(proto, data_path.name, place)
    message = splice_payloads(
        proto.SerializeToString(deterministic=True), lambda key: payload(payloads[key].tensor)
    )
    try:
        if outside:
            # blocks end from the right: the data is in its place before the model that refers to it
            with _complete(path) as file, _complete(data_path) as data:
                for key, tensor in outside.items():
                    data.seek(place[key][0])
                    data.write(payload(tensor))
                file.writelines(message)
        else:
            with _complete(path) as file:
                file.writelines(message)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{path} cannot be written ({reason}); name a file in a writable folder.") from error


def _layout(tensors: dict[int, ir.TensorProtocol]) -> dict[int, tuple[int, int]]:
    """Return offset and length of each tensor in the data file."""
    place: dict[int, tuple[int, int]] = {}
    end = 0
    for key, tensor in tensors.items():
        start = -(-end // _ALIGNMENT) * _ALIGNMENT
        end = start + tensor.nbytes
        place[key] = (start, tensor.nbytes)
    return place


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


@contextmanager
def _complete(target: Path) -> Iterator[BinaryIO]:
    """Open a new file beside its target that takes the target's place when the block ends well."""
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
