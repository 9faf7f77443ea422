"""The read view of an ONNX model: nodes, values with inferred shapes, and constants that load lazily."""

from __future__ import annotations

import ast
import keyword
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import count

import numpy as np
import onnx
import onnx_ir as ir

from rewriter.algebra.sizes import Size
from rewriter.program.graph import Graph, Node, Value
from rewriter.program.onnx_tensors import inner_graphs

__all__ = ["dtype_name", "function_views", "graph_view", "qualified"]

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


def qualified(node: ir.Node) -> str:
    """Return the operator with its domain, ``"ai.onnx::MatMul"``."""
    return f"{node.domain or 'ai.onnx'}::{node.op_type}"


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

    def of_stated(self, dims: tuple[int | str, ...] | None, dtype: str | None) -> Type:
        return None if dims is None else tuple(map(self.size, dims)), dtype

    def of_value(self, value: ir.Value) -> Type:
        if value.const_value is not None:
            tensor = value.const_value
            return tuple(Size.of(n) for n in tensor.shape.numpy()), dtype_name(tensor.dtype)
        dims = None
        if value.shape is not None:
            dims = tuple(self.size(d if isinstance(d, int) else d.value) for d in value.shape)
        return dims, dtype_name(value.dtype) if isinstance(value.type, ir.TensorType) else None


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
    if not type_.HasField("tensor_type"):
        return None, None
    tensor, dims = type_.tensor_type, None
    if tensor.HasField("shape"):
        dims = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim)
    return dims, _known_dtype(tensor.elem_type)


def _inferred(proto: onnx.ModelProto) -> dict[str, Stated]:
    """Return what shape inference finds; claims of the file help it, unless they contradict the operators."""
    bare = _without_claims(proto)
    found = _infer(bare)
    initializers = {x.name for x in proto.graph.initializer}
    claims = {v.name: v for v in (*proto.graph.value_info, *proto.graph.output) if v.name not in initializers}
    stated = _stated(claims.values())
    helpful = {name: v for name, v in claims.items() if _helps(stated[name], found.get(name))}
    if not helpful:
        return found
    for output in bare.graph.output:
        if output.name in helpful:
            output.CopyFrom(helpful.pop(output.name))
    bare.graph.value_info.extend(helpful.values())
    return found | _infer(bare)


def _without_claims(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that says nothing of the shapes of results; notes on nodes, often long, are left out."""
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    del bare.graph.value_info[:]
    for output in bare.graph.output:
        output.ClearField("type")
    for node in bare.graph.node:
        node.ClearField("metadata_props")
    return bare


def _infer(proto: onnx.ModelProto) -> dict[str, Stated]:
    try:
        graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
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


def graph_view(model: ir.Model, proto: onnx.ModelProto) -> Graph:
    """Return the read view.

    Parameters
    ----------
    model
        The model.
    proto
        The same as a message; weights may be missing (`rewriter.program.onnx_tensors.skeleton`).
    """
    view = _View(proto)
    main = model.graph
    for value in main.initializers.values():
        if value.const_value is not None:
            view.add_constant(value, view.shapes.of_value(value), value.const_value.numpy)
    inputs = [value for value in main.inputs if value.name not in view.constants]
    for value in inputs:
        view.values[value.name or ""] = Value(value.name or "", *view.shapes.of_value(value))
    for node in main:
        view.add_node(node)
    names = [[v.name or "" for v in ends] for ends in (inputs, main.outputs)]
    return Graph(tuple(view.nodes), view.values, tuple(names[0]), tuple(names[1]), view.constants)


def function_views(model: ir.Model) -> dict[str, Graph]:
    """Return the body of every model-local function by its qualified name, without shapes."""
    bodies = {}
    for function in model.functions.values():
        view = _View(None)
        for value in function.inputs:
            view.values[value.name or ""] = Value(value.name or "", None, None)
        for node in function:
            view.add_node(node)
        names = [tuple(v.name or "" for v in ends) for ends in (function.inputs, function.outputs)]
        name = f"{function.domain}::{function.name}"
        bodies[name] = Graph(tuple(view.nodes), view.values, names[0], names[1], view.constants)
    return bodies


class _View:
    """A graph view in the making."""

    def __init__(self, proto: onnx.ModelProto | None) -> None:
        self._inferred = {} if proto is None else _inferred(proto)
        inputs = {} if proto is None else _stated(proto.graph.input)
        shapes = {dims for dims, _ in (*inputs.values(), *self._inferred.values()) if dims is not None}
        self.shapes = _Shapes(dim for dims in shapes for dim in dims if isinstance(dim, str))
        self.values: dict[str, Value] = {}
        self.constants: dict[str, Callable[[], np.ndarray]] = {}
        self.nodes: list[Node] = []
        self._names: set[str] = set()
        self._numbers: defaultdict[str, Iterator[int]] = defaultdict(lambda: count(1))

    def add_constant(self, value: ir.Value, type_: Type, load: Callable[[], np.ndarray]) -> None:
        name = value.name or ""
        self.constants[name] = load
        self.values[name] = Value(name, *type_)

    def add_node(self, native: ir.Node) -> None:
        op = qualified(native)
        constant = _constant(native) if op == "ai.onnx::Constant" else None
        if constant is not None:
            self.add_constant(native.outputs[0], *constant)
            return
        name = self._unique(native.name or f"{native.op_type}_{len(self.nodes)}")
        outputs = tuple(v.name or f"{name}:{k}" for k, v in enumerate(native.outputs))
        for output, value in zip(outputs, native.outputs, strict=True):
            self.values[output] = Value(output, *self._type(value))
        inputs = [None if v is None else v.name or None for v in native.inputs]
        self.nodes.append(Node(name, op, (*inputs, *_captured(native)), outputs, native))

    def _type(self, value: ir.Value) -> Type:
        shape, dtype = self.shapes.of_stated(*self._inferred.get(value.name or "", (None, None)))
        if shape is None or dtype is None:
            declared = self.shapes.of_value(value)
            shape, dtype = declared[0] if shape is None else shape, dtype or declared[1]
        return shape, dtype

    def _unique(self, name: str) -> str:
        if name in self._names:
            name = next(free for k in self._numbers[name] if (free := f"{name}_{k}") not in self._names)
        self._names.add(name)
        return name


def _constant(node: ir.Node) -> tuple[Type, Callable[[], np.ndarray]] | None:
    """Return type and loader of a ``Constant`` node's value; None for the sparse kind."""
    if len(node.attributes) != 1:
        return None
    attribute = next(iter(node.attributes.values()))
    if attribute.is_ref():
        return None
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return (tuple(Size.of(n) for n in tensor.shape.numpy()), dtype_name(tensor.dtype)), tensor.numpy
    dtypes = {
        "value_int": "int64", "value_ints": "int64", "value_float": "float32", "value_floats": "float32"
    }  # fmt: skip
    if attribute.name not in dtypes:
        return None
    array = np.asarray(attribute.value, dtypes[attribute.name])
    return (tuple(Size.of(n) for n in array.shape), dtypes[attribute.name]), lambda: array


def _captured(node: ir.Node) -> Iterator[str]:
    """Yield the names of the outer values that a node's inner graphs read, each once."""
    graphs = [g for a in node.attributes.values() for g in inner_graphs(a)]
    if not graphs:
        return
    inner: set[ir.Value] = set()
    read: dict[ir.Value, None] = {}
    stack = list(graphs)
    while stack:
        graph = stack.pop()
        inner.update(graph.inputs, graph.initializers.values())
        read.update(dict.fromkeys(graph.outputs))
        for child in graph:
            inner.update(child.outputs)
            read.update((v, None) for v in child.inputs if v is not None)
            stack.extend(g for a in child.attributes.values() for g in inner_graphs(a))
    direct = {v.name for v in node.inputs if v is not None}
    yield from (v.name for v in read if v not in inner and v.name and v.name not in direct)
