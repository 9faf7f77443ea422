"""What is known while an ONNX graph is translated, and one operator call as its translation sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from rewriter.algebra.prims import Prim, concat, constant, iota, squeeze
from rewriter.algebra.sizes import Size
from rewriter.program.graph import Graph, Node

__all__ = [
    "DTYPES",
    "SMALL",
    "Call",
    "Handler",
    "Known",
    "Result",
    "Scope",
    "integer_tensor",
    "op_name",
    "simple",
]

Array = np.ndarray[Any, Any]

SMALL = 1024
"""Constants with more elements than this are never loaded."""

LONGEST = 64
"""Integer tensors with more elements than this are not followed symbolically."""

MOST_TERMS, HIGHEST_DEGREE, LARGEST = 32, 8, 1 << 63
"""Sizes beyond these are not followed: no model needs them, and they multiply out to millions of terms."""

DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    8: "string",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    14: "complex64",
    15: "complex128",
    16: "bfloat16",
    17: "float8e4m3fn",
    18: "float8e4m3fnuz",
    19: "float8e5m2",
    20: "float8e5m2fnuz",
    21: "uint4",
    22: "int4",
    23: "float4e2m1",
    24: "float8e8m0",
}
"""``TensorProto.DataType`` numbers."""


@lru_cache(1 << 14)
def simple(size: Size) -> bool:
    """Whether arithmetic with the size stays cheap: a file can square a size at every node."""
    if size.static:
        return abs(int(size)) <= LARGEST
    return len(size.terms) <= MOST_TERMS and len(size.terms[-1][0]) <= HIGHEST_DEGREE


class Known(NamedTuple):
    """The entries of an integer (or boolean, as 0 and 1) tensor of rank 0 or 1; None where unknown."""

    values: tuple[Size | None, ...]
    scalar: bool = False


@dataclass(slots=True)
class Scope:
    """Everything found so far, by value name.

    Parameters
    ----------
    graph, opset
        What is translated.
    functions
        Bodies of model-local functions by qualified name.
    prims
        Values in primitive form.
    arrays
        Small values that are plain numbers.
    integers
        Small integer tensors that depend on dynamic sizes.
    closed
        Values that depend on no graph input and on nothing random.
    unranked
        Values of unknown rank: leaves whose shape means nothing.
    """

    graph: Graph
    opset: int
    functions: Mapping[str, Graph] = field(default_factory=dict)
    prims: dict[str, Prim] = field(default_factory=dict)
    arrays: dict[str, Array] = field(default_factory=dict)
    integers: dict[str, Known] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)
    unranked: set[str] = field(default_factory=set)
    _same: dict[str, Size] = field(default_factory=dict)
    _given: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        shapes = [self.graph.values[name].shape or () for name in (*self.graph.inputs, *self.graph.held)]
        self._given = frozenset(symbol for shape in shapes for size in shape for symbol in size.symbols)

    def declared(self, name: str) -> tuple[Size, ...] | None:
        """Return the shape that the graph states, in the dimensions of the inputs where those are known."""
        value = self.graph.values.get(name)
        if value is None or value.shape is None or not self._same:
            return None if value is None else value.shape
        return tuple(size if size.static else size.substitute(self._same) for size in value.shape)

    def dim(self, name: str, axis: int, rank: int) -> Size:
        """Return the stated size of an axis, or a symbol of its own."""
        declared = self.declared(name)
        if declared is not None and len(declared) == rank:
            return declared[axis]
        return Size.symbol(f"{name}[{axis}]")

    def learn(self, name: str, shape: tuple[Size, ...]) -> None:
        """Note that the names a graph gives to unknown dimensions of ``name`` stand for ``shape``."""
        value = self.graph.values.get(name)
        if value is None or value.shape is None or value.shape == shape or len(value.shape) != len(shape):
            return
        for stated, found in zip(value.shape, shape, strict=True):
            if stated.static or stated == found or len(stated.terms) != 1:
                continue
            (monomial, coefficient), *_ = stated.terms
            symbol = monomial[0]
            if (
                len(monomial) == coefficient == 1
                and symbol not in self._given | found.symbols | self._same.keys()
            ):
                self._same[symbol] = found.substitute(self._same)

    def dtype(self, name: str) -> str | None:
        """Return the stated dtype."""
        value = self.graph.values.get(name)
        return None if value is None else value.dtype


class Call:
    """One node being translated.

    Parameters
    ----------
    scope
        What is known.
    node
        The node.
    outputs
        Names by position, ``""`` where an optional output is absent.
    """

    __slots__ = ("_attributes", "inputs", "node", "op", "outputs", "scope")

    def __init__(self, scope: Scope, node: Node, outputs: Sequence[str]) -> None:
        self.scope = scope
        self.node = node
        self.op = op_name(node)
        self.outputs = outputs
        self.inputs = [scope.prims[name] if name else None for name in node.inputs]
        self._attributes: Mapping[str, Any] | None = None

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return self.scope.opset

    def get(self, at: int) -> Prim | None:
        """Return an operand, or None where it is absent."""
        return self.inputs[at] if at < len(self.inputs) else None

    def __getitem__(self, at: int) -> Prim:
        operand = self.get(at)
        if operand is None:
            raise ValueError(f"{self.node.name} ({self.op}) lacks operand {at}")
        return operand

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute."""
        if self._attributes is None:
            self._attributes = self.node.native.attributes()
        return self._attributes.get(name, default)

    def array(self, at: int) -> Array | None:
        """Return an operand's numbers where they are known."""
        name = self.node.inputs[at] if at < len(self.node.inputs) else None
        return self.scope.arrays.get(name) if name else None

    def integers(self, at: int) -> Known | None:
        """Return the entries of an integer operand of rank 0 or 1."""
        name = self.node.inputs[at] if at < len(self.node.inputs) else None
        if not name:
            return None
        found = self.scope.integers.get(name)
        if found is not None:
            return found
        array = self.scope.arrays.get(name)
        if array is None or array.ndim > 1 or array.size > LONGEST or array.dtype.kind not in "iub":
            return None
        return Known(tuple(Size.of(int(n)) for n in array.reshape(-1)), array.ndim == 0)

    def numbers(self, at: int, attribute: str | None = None) -> list[int] | None:
        """Return the plain integers in an operand, or else in the attribute that older versions have."""
        if attribute is not None and (value := self.attribute(attribute)) is not None:
            return [int(n) for n in value]
        array = self.array(at)
        if array is None or array.dtype.kind not in "iu":
            return None
        return [int(n) for n in array.reshape(-1)]

    def present(self, at: int) -> bool:
        """Whether an operand is given at all."""
        return self.get(at) is not None

    def dim(self, axis: int, rank: int, output: int = 0) -> Size:
        """Return the stated size of an output's axis, or a symbol of its own."""
        return self.scope.dim(self.outputs[output], axis, rank)

    def declared(self, output: int = 0) -> tuple[Size, ...] | None:
        """Return the stated shape of an output."""
        return self.scope.declared(self.outputs[output])


Result = Prim | Sequence[Prim | None] | None
"""Translation of a node: its outputs (a single one bare), None for those that are leaves."""

Handler = Callable[[Call], Result]


def op_name(node: Node) -> str:
    """Return the operator's name, bare for a standard operator."""
    return node.op.removeprefix("ai.onnx::")


def integer_tensor(known: Known, dtype: str) -> Prim | None:
    """Return the tensor that holds ``known``, or None if an entry is unknown."""
    if None in known.values:
        return None
    values = [size for size in known.values if size is not None]
    if all(size.static for size in values):
        numbers = np.array([int(size) for size in values], dtype=np.int64).astype(dtype)
        return constant(numbers[0] if known.scalar else numbers, dtype)
    entries = [iota(1, start=size, dtype=dtype) for size in values]
    if known.scalar:
        return squeeze(entries[0], 0)
    return entries[0] if len(entries) == 1 else concat(entries, 0)
