"""Weights in and out of a serialised ONNX model without parsing them.

A protobuf message is a list of fields, each a number, a wire type and a payload. Walking that list
down to the tensors finds where every weight lies in the file, so the weights can be cut out (what is
left parses in milliseconds and is kilobytes) and put back (from a memory map, while writing).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

__all__ = ["INLINE", "WireError", "cut_payloads", "splice_payloads"]

INLINE = "<inline>"
"""External-data location of a cut payload; its offset and length are those in the file it was cut from."""

_CUT_ABOVE = 1024
_DEEPEST = 90  # the protobuf parser itself stops at 100 nested messages
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# message -> field number -> the message in that field, on the ways from a model to its tensors
_CHILDREN: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 25: "FunctionProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {5: "TensorProto", 6: "GraphProto", 11: "GraphProto"},
}
# fields of TensorProto
_DATA_TYPE, _FLOAT_DATA, _RAW_DATA, _DOUBLE_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 2, 4, 9, 10, 13, 14
_PAYLOADS = frozenset({_FLOAT_DATA, 5, 6, 7, _RAW_DATA, _DOUBLE_DATA, 11})
_FLOAT, _DOUBLE = 1, 11

Chunks = list[bytes | memoryview]


class WireError(ValueError):
    """The bytes are not a protobuf message of this kind."""


_Field = tuple[int, int, int, int, int]
"""Number, wire type, where the tag begins, where the payload begins (after its length), where it ends."""


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            break
    raise WireError(f"a number at byte {at} does not end")


def _fields(data: memoryview, at: int, end: int, smallest: int = 0) -> Iterator[_Field]:
    """Yield the fields of the message in ``data[at:end]`` that are not smaller than ``smallest``."""
    while at < end:
        start = at
        tag, at = (data[at], at + 1) if data[at] < 0x80 else _varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        body = at
        if wire == _BYTES:
            short = at < end and data[at] < 0x80
            length, body = (data[at], at + 1) if short else _varint(data, at, end)
            at = body + length
        elif wire == _VARINT:
            _, at = _varint(data, at, end)
        elif wire == _FIXED64:
            at += 8
        elif wire == _FIXED32:
            at += 4
        else:
            raise WireError(f"byte {start} begins a field of wire type {wire}, which ONNX does not use")
        if at > end or number == 0:
            raise WireError(
                f"the field at byte {start} ends at byte {at}, after its message ends at byte {end}"
            )
        if at - body >= smallest:
            yield number, wire, start, body, at


def _encode(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, *chunks: bytes | memoryview) -> Chunks:
    """Return a length-delimited field."""
    return [_encode(number << 3 | _BYTES), _encode(sum(map(len, chunks))), *chunks]


def _entry(key: str, value: str) -> bytes:
    pair = b"".join(_field(1, key.encode()) + _field(2, value.encode()))
    return b"".join(_field(_EXTERNAL_DATA, pair))


_Edit = Callable[[memoryview, int, int], Chunks | None]


def _edit_tensors(
    data: memoryview, at: int, end: int, message: str, smallest: int, edit: _Edit, depth: int = 0
) -> Chunks:
    """Return the message in ``data[at:end]`` with its tensors edited; what stays is not copied."""
    if depth > _DEEPEST:
        raise WireError(f"messages are nested more than {_DEEPEST} deep")
    if message == "TensorProto":
        return edit(data, at, end) or [data[at:end]]
    children = _CHILDREN[message]
    chunks: Chunks = []
    kept = at
    for number, wire, start, body, stop in _fields(data, at, end, smallest):
        if number not in children or wire != _BYTES:
            continue
        inside = _edit_tensors(data, body, stop, children[number], smallest, edit, depth + 1)
        if len(inside) == 1:  # unchanged
            continue
        chunks += [data[kept:start], *_field(number, *inside)]
        kept = stop
    chunks.append(data[kept:end])
    return chunks


def _cut(data: memoryview, at: int, end: int) -> Chunks | None:
    payload: _Field | None = None
    dtype = 0
    for field in _fields(data, at, end):
        number, wire, _, body, _ = field
        if number in _PAYLOADS:
            if payload is not None or wire != _BYTES:
                return None
            payload = field
        elif number == _DATA_TYPE and wire == _VARINT:
            dtype, _ = _varint(data, body, end)
        elif number in (_EXTERNAL_DATA, _DATA_LOCATION):
            return None
    if payload is None:
        return None
    number, _, start, body, stop = payload
    if stop - body <= _CUT_ABOVE:
        return None
    plain = {_RAW_DATA: True, _FLOAT_DATA: dtype == _FLOAT, _DOUBLE_DATA: dtype == _DOUBLE}
    if not plain.get(number, False):
        return None
    where = {"location": INLINE, "offset": str(body), "length": str(stop - body)}
    external = b"".join(_entry(key, value) for key, value in where.items())
    location = _encode(_DATA_LOCATION << 3 | _VARINT) + b"\x01"
    return [data[at:start], data[stop:end], external, location]


def cut_payloads(data: memoryview) -> bytes:
    """Return a serialised model with every large tensor turned into external data at `INLINE`.

    Parameters
    ----------
    data
        A serialised ``ModelProto``; only its structure is read, payloads are skipped over.

    Raises
    ------
    WireError
        If the bytes are not a protobuf message.
    """
    return b"".join(_edit_tensors(data, 0, len(data), "ModelProto", _CUT_ABOVE, _cut))


def splice_payloads(model: bytes, payload: Callable[[int], bytes | memoryview | None]) -> Chunks:
    """Return the chunks of a serialised model whose external data at `INLINE` is put back inline.

    Parameters
    ----------
    model
        A serialised ``ModelProto``.
    payload
        Gives the raw data for the ``offset`` that a tensor carries; None leaves it external.
    """

    def splice(data: memoryview, at: int, end: int) -> Chunks | None:
        kept: Chunks = []
        raw: bytes | memoryview | None = None
        for number, _, start, body, stop in _fields(data, at, end):
            if number == _EXTERNAL_DATA:
                key, value = (bytes(data[f:g]) for *_, f, g in _fields(data, body, stop))
                if key == b"location" and value != INLINE.encode():
                    return None
                if key == b"offset":
                    raw = payload(int(value))
            elif number != _DATA_LOCATION:
                kept.append(data[start:stop])
        return None if raw is None else [*kept, *_field(_RAW_DATA, raw)]

    return _edit_tensors(memoryview(model), 0, len(model), "ModelProto", 1, splice)
