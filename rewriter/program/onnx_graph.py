"""The read view of an ONNX model: nodes, values with inferred shapes, and constants that load lazily."""

from __future__ import annotations

import ast
import keyword
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import count

import numpy as np
import onnx
import onnx_ir as ir

from rewriter.algebra.sizes import Size
from rewriter.program.graph import Graph, Node, Value
from rewriter.program.onnx_message import Message, NativeNode, inner_graphs
from rewriter.program.onnx_version import overridable

__all__ = ["dtype_name", "function_views", "graph_view"]

_LONGEST_FORMULA = 64
_LONGEST_NAME = 40
# powers are left out: a short text of nested ones is a polynomial of millions of terms
_FORMULA = (
    ast.Expression, ast.Name, ast.Load, ast.UnaryOp, ast.USub, ast.BinOp, ast.Add, ast.Sub,
    ast.Mult, ast.FloorDiv, ast.Mod,
)  # fmt: skip
# exporters write these for "not known": two axes of this name need not be equal
_NO_NAMES = frozenset({"none", "unknown", "dynamic", "unk"})
_NAMES = {ir.DataType.FLOAT: "float32", ir.DataType.DOUBLE: "float64"}

Type = tuple[tuple[Size, ...] | None, str | None]
Stated = tuple[tuple[int | str, ...] | None, str | None]
"""Sizes (a number, a name, or "" for neither) and dtype, as a message states them."""


def dtype_name(dtype: ir.DataType | int | None) -> str | None:
    """Return ``"float32"`` for ``FLOAT``; None for what is undefined."""
    dtype = ir.DataType(dtype) if dtype else None
    return None if not dtype else _NAMES.get(dtype, dtype.name.lower())


class _Shapes:
    """Reads shapes of messages and of the IR; an axis without a size or a name gets a symbol of its own."""

    def __init__(self, names: Iterable[str]) -> None:
        self._sizes: dict[int | str | None, Size] = {}
        self._taken = set(names)
        self._fresh = (name for k in count() if (name := f"_d{k}") not in self._taken)

    def size(self, dim: int | str | None) -> Size:
        known = self._sizes.get(dim)
        if known is not None:
            return known
        if isinstance(dim, int) and dim >= 0:
            size = Size.of(dim)
        elif isinstance(dim, str) and dim.lower() not in _NO_NAMES and any(map(str.isalpha, dim)):
            size = self._named(dim)
        else:
            return Size.symbol(next(self._fresh))
        self._sizes[dim] = size
        return size

    def _named(self, name: str) -> Size:
        """Return a formula of dimensions as such; another name is one dimension, spelled as an identifier."""
        size = _formula(name)
        if size is not None:
            return size
        plain = re.sub(r"\W", "_", name, flags=re.ASCII)[:_LONGEST_NAME]
        plain = f"_{plain}" if not plain.isidentifier() or keyword.iskeyword(plain) else plain
        while plain in self._taken:
            plain += "_"
        self._taken.add(plain)
        return Size.symbol(plain)

    def of(self, dims: tuple[int | str, ...] | None, dtype: str | None) -> Type:
        return None if dims is None else tuple(map(self.size, dims)), dtype


@cache
def _known_dtype(code: int) -> str | None:
    try:
        return dtype_name(code)
    except ValueError:
        return None


def _formula(name: str) -> Size | None:
    """Return ``batch``, ``past + 1`` or ``(n) // (4)`` as a size; None for what is no formula."""
    if len(name) > _LONGEST_FORMULA:
        return None
    try:
        parsed = ast.parse(name, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    for part in ast.walk(parsed):
        number = isinstance(part, ast.Constant) and type(part.value) is int
        if not number and not isinstance(part, _FORMULA):
            return None
    size = Size.parse(name)
    return None if size.static else size


def _stated(values: Iterable[onnx.ValueInfoProto]) -> dict[str, Stated]:
    """Return what messages say of values. Reading one is slow, so one of each type speaks for all."""
    known: dict[bytes, Stated] = {}
    stated: dict[str, Stated] = {}
    for value in values:
        key = value.type.SerializeToString()
        if key not in known:
            known[key] = _read(value.type)
        stated[value.name] = known[key]
    return stated


def _read(type_: onnx.TypeProto) -> Stated:
    if type_.HasField("optional_type"):
        return _read(type_.optional_type.elem_type)[0], None
    if not type_.HasField("tensor_type"):
        return None, None
    tensor, dims = type_.tensor_type, None
    if tensor.HasField("shape"):
        dims = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim)
    return dims, _known_dtype(tensor.elem_type)


def _inferred(proto: onnx.ModelProto, claims: Mapping[str, onnx.ValueInfoProto]) -> dict[str, Stated]:
    """Return what shape inference finds; claims of the file help it, unless they contradict the operators."""
    bare = _without_notes(proto)
    _forget(bare, overridable(proto))
    try:
        return _infer(bare, strict=True)
    except _INFERENCE_FAILS:
        return _inferred_in_spite(bare, claims)


def _inferred_in_spite(bare: onnx.ModelProto, claims: Mapping[str, onnx.ValueInfoProto]) -> dict[str, Stated]:
    """Return what shape inference finds with those claims only that it does not contradict without any."""
    del bare.graph.value_info[:]
    for output in bare.graph.output:
        output.ClearField("type")
    found = _infer(bare)
    stated = _stated(claims.values())
    helpful = {name: v for name, v in claims.items() if _helps(stated[name], found.get(name))}
    if not helpful:
        return found
    for output in bare.graph.output:
        if output.name in helpful:
            output.CopyFrom(helpful.pop(output.name))
    bare.graph.value_info.extend(helpful.values())
    return found | _infer(bare)


def _without_notes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy without notes on nodes, which are often long."""
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    for node in bare.graph.node:
        node.ClearField("metadata_props")
    return bare


def _forget(bare: onnx.ModelProto, names: Collection[str]) -> None:
    """Remove initializers, so that no shape is inferred from what they hold."""
    if names:
        kept = [t for t in bare.graph.initializer if t.name not in names]
        del bare.graph.initializer[:]
        bare.graph.initializer.extend(kept)


_INFERENCE_FAILS = (onnx.shape_inference.InferenceError, RuntimeError, ValueError)


def _infer(proto: onnx.ModelProto, strict: bool = False) -> dict[str, Stated]:
    """Return the types that are found; strictly, a contradiction is an error and not left out."""
    try:
        graph = onnx.shape_inference.infer_shapes(proto, strict_mode=strict, data_prop=True).graph
    except _INFERENCE_FAILS:
        if strict:
            raise
        graph = proto.graph
    return _stated((*graph.value_info, *graph.output))


def _helps(claim: Stated, found: Stated | None) -> bool:
    """Whether a claim says something that was not found, and both can be true."""
    if found is None or found == (None, None):
        return True
    (dims, dtype), (known, known_dtype) = claim, found
    if dims is None or known is None or dtype != known_dtype:
        return dtype == known_dtype
    pairs = zip(dims, known, strict=False)
    return (
        dims != known
        and len(dims) == len(known)
        and all(m == n or not (isinstance(m, int) and isinstance(n, int)) for m, n in pairs)
    )


def graph_view(message: Message) -> Graph:
    """Return the read view of a model."""
    graph = message.proto.graph
    initializers = {tensor.name for tensor in graph.initializer}
    claims = {v.name: v for v in (*graph.value_info, *graph.output) if v.name not in initializers}
    given, inferred = _stated(graph.input), _inferred(message.proto, claims)
    names = (d for dims, _ in {*given.values(), *inferred.values()} for d in dims or () if isinstance(d, str))
    view = _View(message, _Shapes(names), inferred, claims)
    held = overridable(message.proto)
    for tensor in graph.initializer:
        view.add_constant(tensor.name, tensor)
    defaults = {name: view.constants.pop(name) for name in view.constants.keys() & held}
    inputs = [value.name for value in graph.input if value.name not in view.constants]
    for name in inputs:
        view.values[name] = Value(name, *view.shapes.of(*given[name]))
    needed = [name for name in inputs if name not in held]
    found = view.finished(graph.node, needed, [value.name for value in graph.output])
    return replace(found, held={name: defaults[name] for name in inputs if name in held})


def function_views(message: Message) -> dict[str, Graph]:
    """Return the body of every model-local function by its qualified name, without inferred shapes."""
    bodies = {}
    for function in message.proto.functions:
        view = _View(message, _Shapes(()), {}, {v.name: v for v in function.value_info})
        for name in function.input:
            view.values[name] = Value(name, None, None)
        body = view.finished(function.node, function.input, function.output)
        bodies[f"{function.domain}::{function.name}"] = body
    return bodies


class _View:
    """A graph view in the making."""

    def __init__(
        self,
        message: Message,
        shapes: _Shapes,
        inferred: Mapping[str, Stated],
        claims: Mapping[str, onnx.ValueInfoProto],
    ) -> None:
        self._message = message
        self.shapes = shapes
        self._inferred = inferred
        self._claims = claims
        self.values: dict[str, Value] = {}
        self.constants: dict[str, Callable[[], np.ndarray]] = {}
        self.nodes: list[Node] = []
        self._names: set[str] = set()
        self._numbers: defaultdict[str, Iterator[int]] = defaultdict(lambda: count(1))

    def finished(
        self, nodes: Iterable[onnx.NodeProto], inputs: Sequence[str], outputs: Sequence[str]
    ) -> Graph:
        for node in nodes:
            self._add_node(node)
        return Graph(tuple(self.nodes), self.values, tuple(inputs), tuple(outputs), self.constants)

    def add_constant(self, name: str, tensor: onnx.TensorProto) -> None:
        self.constants[name] = lambda: self._message.tensor(tensor).numpy()
        shape = tuple(map(Size.of, tensor.dims))
        self.values[name] = Value(name, shape, _known_dtype(tensor.data_type))

    def _add_node(self, proto: onnx.NodeProto) -> None:
        native = NativeNode(proto, self._message)
        op_type, domain, outputs = proto.op_type, proto.domain or _STANDARD, native.outputs
        if op_type == "Constant" and domain == _STANDARD and self._add_numbers(native):
            return
        name = self._unique(proto.name or f"{op_type}_{len(self.nodes)}")
        if "" in outputs:
            outputs = tuple(v or f"{name}:{k}" for k, v in enumerate(outputs))
        for output in outputs:
            self.values[output] = Value(output, *self._type(output))
        inputs = (*(v or None for v in proto.input), *_captured(proto))
        self.nodes.append(Node(name, f"{domain}::{op_type}", inputs, outputs, native))

    def _add_numbers(self, node: NativeNode) -> bool:
        """Add what a ``Constant`` node holds; False for the sparse kind and for text."""
        attributes = node.attributes()
        if len(attributes) != 1 or len(node.proto.attribute) != 1:
            return False
        (output,), ((name, numbers),) = node.outputs, attributes.items()
        if name == "value":
            self.add_constant(output, node.proto.attribute[0].t)
            return True
        dtype = _NUMBERS.get(name)
        if dtype is None:
            return False
        array = np.asarray(numbers, dtype)
        self.constants[output] = lambda: array
        self.values[output] = Value(output, tuple(map(Size.of, array.shape)), dtype)
        return True

    def _type(self, name: str) -> Type:
        shape, dtype = self.shapes.of(*self._inferred.get(name, (None, None)))
        if (shape is None or dtype is None) and name in self._claims:
            declared = self.shapes.of(*_read(self._claims[name].type))
            shape, dtype = declared[0] if shape is None else shape, dtype or declared[1]
        return shape, dtype

    def _unique(self, name: str) -> str:
        if name in self._names:
            name = next(free for k in self._numbers[name] if (free := f"{name}_{k}") not in self._names)
        self._names.add(name)
        return name


_STANDARD = "ai.onnx"

_NUMBERS = {"value_int": "int64", "value_ints": "int64", "value_float": "float32", "value_floats": "float32"}
"""Types of the attributes of ``Constant`` that are numbers themselves."""


def _captured(node: onnx.NodeProto) -> Iterable[str]:
    """Return the names of the outer values that a node's inner graphs read, each once."""
    stack = [(graph, frozenset(node.input)) for graph in inner_graphs(node)]
    read: dict[str, None] = {}
    while stack:
        graph, outer = stack.pop()
        written = [name for child in graph.node for name in child.output]
        known = outer.union(written, (v.name for v in graph.input), (t.name for t in graph.initializer))
        names = [v.name for v in graph.output] + [name for child in graph.node for name in child.input]
        read.update((name, None) for name in names if name and name not in known)
        stack += [(inner, known) for child in graph.node for inner in inner_graphs(child)]
    return read
