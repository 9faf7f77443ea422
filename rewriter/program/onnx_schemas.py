"""What the standard says about nodes and tensors, checked before anything relies on it.

Operators of other domains have no schema here: the runtime checks those.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import onnx

from rewriter.errors import InputError

__all__ = ["MOST_AXES", "MOST_ELEMENTS", "PLAIN", "check_call", "check_declared", "check_tensor"]

MOST_AXES = 64
"""More axes than any runtime supports."""

MOST_ELEMENTS = 1 << 40
"""More elements than an input of a model has."""

_TYPES = onnx.AttributeProto.AttributeType

PLAIN = frozenset(_TYPES.Value(name + many) for name in ("FLOAT", "INT", "STRING") for many in ("", "S"))
"""Types of attributes that hold no tensor and no graph."""

_EXTERNAL = frozenset({"location", "offset", "length", "checksum", "basepath"})
_DTYPES = frozenset(onnx.TensorProto.DataType.values())
_LARGEST = 1 << 63
_MANY = 1 << 30  # what a schema says of operators with any number of operands


@dataclass(frozen=True, slots=True)
class _Signature:
    """Numbers of operands and results, and types of attributes by name, with those that must be there."""

    inputs: tuple[int, int]
    outputs: tuple[int, int]
    attributes: dict[str, int]
    required: frozenset[str]


@lru_cache(1 << 12)
def _signature(operator: str, opset: int) -> _Signature | None:
    try:
        schema = onnx.defs.get_schema(operator, opset, "")
    except onnx.defs.SchemaError:
        return None
    return _Signature(
        (schema.min_input, schema.max_input),
        (schema.min_output, schema.max_output),
        {name: _TYPES.Value(a.type.name) for name, a in schema.attributes.items()},  # type: ignore[attr-defined]
        frozenset(name for name, a in schema.attributes.items() if a.required),
    )


def check_call(node: onnx.NodeProto, opset: int | None, path: str) -> None:
    """Check a node of the standard domain against the schema of its operator.

    Attributes that the schema does not know are left to the runtime, which may.

    Raises
    ------
    InputError
        If it has too few or too many operands or results, an attribute of another type or twice, or lacks
        one that must be there.
    """
    wrong = _wrong(node, opset)
    if wrong is not None:
        name = repr((node.name or node.op_type)[:80])
        raise InputError(f"{path}: node {name} ({node.op_type[:40]}) {wrong}.")


def _wrong(node: onnx.NodeProto, opset: int | None) -> str | None:
    types = {a.name: a.type for a in node.attribute}
    if len(types) != len(node.attribute):
        return "has an attribute twice"
    known = _signature(node.op_type, opset) if node.domain in ("", "ai.onnx") and opset else None
    if known is None:
        return None
    for name, type_ in types.items():
        wanted = known.attributes.get(name, type_)
        if type_ != wanted:
            given, expected = _TYPES.Name(type_), _TYPES.Name(wanted)
            return f"breaks its schema: attribute {name!r} has type {given}; expected {expected}"
    missing = known.required - types.keys()
    if missing:
        return f"lacks the attribute {min(missing)!r}"
    return _miscounted(node.input, known.inputs, "operands") or _miscounted(
        node.output, known.outputs, "results"
    )


def _miscounted(names: Sequence[str], bounds: tuple[int, int], what: str) -> str | None:
    low, high = bounds
    given = len(names)
    if low <= given <= high:
        return None
    while given and not names[given - 1]:
        given -= 1  # trailing ones that are left out
    if len(names) >= low and given <= high:
        return None
    expected = str(low) if low == high else f"{low} to {high}" if high < _MANY else f"{low} or more"
    return f"has {len(names)} {what}; expected {expected}"


def check_tensor(tensor: onnx.TensorProto, path: str) -> None:
    """Check what a tensor says of itself: its type, its number of axes, where its data lies.

    Raises
    ------
    InputError
        If a type is unknown, there are too many axes, or a place in a file is no number.
    """
    name = repr(tensor.name[:80])
    if tensor.data_type not in _DTYPES:
        raise InputError(f"{path}: tensor {name} has the unknown type {tensor.data_type}.")
    if len(tensor.dims) > MOST_AXES:
        raise InputError(f"{path}: tensor {name} has {len(tensor.dims)} axes; expected {MOST_AXES} at most.")
    for entry in tensor.external_data:
        if entry.key not in _EXTERNAL:
            raise InputError(
                f"{path}: tensor {name} describes its data by {entry.key[:80]!r}, which is unknown."
            )
        number = entry.value.isascii() and entry.value.isdecimal() and len(entry.value) < 20
        if entry.key in ("offset", "length") and not (number and int(entry.value) < _LARGEST):
            raise InputError(
                f"{path}: the {entry.key} of the data of tensor {name} is {entry.value[:80]!r}; "
                "expected a number of bytes."
            )


def check_declared(values: Iterable[onnx.ValueInfoProto], path: str) -> None:
    """Check the shapes that a graph declares for its inputs.

    Raises
    ------
    InputError
        If one has too many axes, or more elements than any memory holds.
    """
    for value in values:
        dims = value.type.tensor_type.shape.dim
        name = repr(value.name[:80])
        if len(dims) > MOST_AXES:
            raise InputError(f"{path}: input {name} has {len(dims)} axes; expected {MOST_AXES} at most.")
        count = 1
        for dim in dims:
            count *= max(1, dim.dim_value)
        if count > MOST_ELEMENTS:
            raise InputError(f"{path}: input {name} has {count} elements; expected {MOST_ELEMENTS} at most.")
