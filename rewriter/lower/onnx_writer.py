"""ONNX nodes as they are written: constants, and sizes computed from the shapes of the inputs, each once."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from rewriter.algebra.sizes import ONE, ZERO, Size, product
from rewriter.lower.errors import EmitError
from rewriter.lower.numbers import finite_in

__all__ = ["OnnxWriter", "Tensor", "onnx_type"]

_NAMES = {ir.DataType.FLOAT: "float32", ir.DataType.DOUBLE: "float64"}
_TYPES = {_NAMES.get(t, t.name.lower()): t for t in ir.DataType}


def onnx_type(dtype: str) -> ir.DataType:
    """Return ``FLOAT`` for ``"float32"``."""
    return _TYPES[dtype]


@dataclass(frozen=True, eq=False)
class Tensor:
    """What an emitter hands out: a value of the new nodes, with its shape and dtype."""

    value: ir.Value
    shape: tuple[Size, ...]
    dtype: str


class OnnxWriter:
    """Writes nodes, and computes dynamic sizes with them.

    Parameters
    ----------
    prefix
        Begins the name of every node and value.

    Attributes
    ----------
    nodes
        What has been written so far, in order.
    domains
        Operator sets that the nodes use besides the standard one, with their versions.
    """

    def __init__(self, prefix: str = "") -> None:
        self.nodes: list[ir.Node] = []
        self.domains: dict[str, int] = {}
        self._prefix = prefix
        self._inputs: list[Tensor] = []
        self._known: dict[Any, Tensor] = {}
        self._quotients: dict[str, tuple[Size, int]] = {}
        self._bounded: dict[str, tuple[Size, int]] = {}
        self._wanted: set[str] = set()

    def input(self, value: ir.Value, shape: Sequence[Size], dtype: str) -> Tensor:
        """Declare a value that the nodes may read; sizes in its shape can be computed from it."""
        tensor = Tensor(value, tuple(shape), dtype)
        self._inputs.append(tensor)
        return tensor

    def node(
        self,
        op: str,
        inputs: Sequence[Tensor | None],
        shape: Sequence[Size],
        dtype: str,
        domain: str = "",
        output: int = 0,
        after: int = 0,
        **attributes: Any,
    ) -> Tensor:
        """Write a node of which one output is read, of this shape and dtype; ``after`` more follow it."""
        name = f"{self._prefix}{op.lower()}_{len(self.nodes)}"
        outputs = [ir.Value(name=f"{name}.unread_{k}") for k in range(output + after)]
        outputs.insert(output, ir.Value(name=name, type=ir.TensorType(onnx_type(dtype))))
        values = [None if x is None else x.value for x in inputs]
        settings = ir.convenience.convert_attributes(attributes)
        self.nodes.append(ir.Node(domain, op, values, settings, outputs=outputs, name=name))
        if domain:
            self.domains[domain] = 1
        return Tensor(outputs[output], tuple(shape), dtype)

    def constant(self, array: np.ndarray | float | bool, dtype: str) -> Tensor:
        """Write a known value; equal ones are one node."""
        known = finite_in(array, dtype).astype(onnx_type(dtype).numpy())

        def make() -> Tensor:
            shape = tuple(Size.of(n) for n in known.shape)
            return self.node("Constant", [], shape, dtype, value=ir.Tensor(known, onnx_type(dtype)))

        return self.once(("constant", dtype, known.shape, known.tobytes()), make)

    def integers(self, values: Sequence[int]) -> Tensor:
        """Write a vector of int64."""
        return self.constant(np.asarray(values, np.int64), "int64")

    def once(self, key: Any, make: Callable[[], Tensor]) -> Tensor:
        """Return what was made for ``key``, made now if it was not."""
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    # sizes

    def number(self, size: Size) -> Tensor:
        """Return a size as an int64 tensor of shape [1].

        Raises
        ------
        EmitError
            If a dimension in it cannot be computed from the inputs.
        """
        if size.static:
            return self.integers([int(size)])
        return self.once(("size", size), lambda: self._polynomial(size))

    def scalar(self, size: Size) -> Tensor:
        """Return a size as a 0-d int64 tensor."""
        if size.static:
            return self.constant(np.asarray(int(size)), "int64")
        return self.once(
            ("scalar", size),
            lambda: self.node("Reshape", [self.number(size), self.integers([])], [], "int64"),
        )

    def vector(self, sizes: Sequence[Size]) -> Tensor:
        """Return sizes as an int64 vector."""
        if all(n.static for n in sizes):
            return self.integers([int(n) for n in sizes])
        parts = [self.number(n) for n in sizes]
        if len(parts) == 1:
            return parts[0]
        return self.once(
            ("sizes", tuple(sizes)),
            lambda: self.node("Concat", parts, [Size.of(len(parts))], "int64", axis=0),
        )

    def computable(self, size: Size) -> bool:
        """Whether a size can be computed from the inputs."""
        before = len(self.nodes)
        try:
            self.number(size)
        except EmitError:
            return False
        finally:
            self._forget(before)
        return True

    def _dim(self, x: Tensor, axis: int) -> Tensor:
        rank = Size.of(len(x.shape))
        shape = self.once(("shape", id(x.value)), lambda: self.node("Shape", [x], [rank], "int64"))
        return self.once(
            ("dim", id(x.value), axis),
            lambda: self.node("Gather", [shape, self.integers([axis])], [ONE], "int64", axis=0),
        )

    def _polynomial(self, size: Size) -> Tensor:
        for x in self._inputs:
            if size in x.shape:
                return self._dim(x, x.shape.index(size))
        before = len(self.nodes)
        try:
            terms = [self._product(monomial, coefficient) for monomial, coefficient in size.terms]
        except EmitError:
            self._forget(before)
            return self._by_parts(size)
        total = terms[0]
        for term in terms[1:]:
            total = self.node("Add", [total, term], [ONE], "int64")
        return total

    def _by_parts(self, size: Size) -> Tensor:
        """Compute ``factor * axis + rest`` where ``axis`` is a whole axis, whose dimensions are not known."""
        for x in self._inputs:
            for axis, whole in enumerate(x.shape):
                factor = _factor(size, whole)
                rest = size - factor * whole
                if len(rest.terms) >= len(size.terms) or not (
                    self.computable(factor) and self.computable(rest)
                ):
                    continue
                part = self._dim(x, axis)
                if factor != ONE:
                    part = self.node("Mul", [part, self.number(factor)], [ONE], "int64")
                return part if rest == ZERO else self.node("Add", [part, self.number(rest)], [ONE], "int64")
        raise _unknown(str(size))

    def _product(self, names: Sequence[str], coefficient: int) -> Tensor:
        factors = [self._symbol(name) for name in names]
        if coefficient != 1 or not factors:
            factors.append(self.integers([coefficient]))
        result = factors[0]
        for factor in factors[1:]:
            result = self.node("Mul", [result, factor], [ONE], "int64")
        return result

    def _symbol(self, name: str) -> Tensor:
        """Return a dimension: from a shape that it is a part of, or by the formula that it is named by."""
        if name in self._wanted:
            raise _unknown(name)
        self._wanted.add(name)
        try:
            return self.once(("size", Size.symbol(name)), lambda: self._solve(name))
        finally:
            self._wanted.discard(name)

    def _solve(self, name: str) -> Tensor:
        if name in self._quotients:
            dividend, by = self._quotients[name]
            return self._divided(self.number(dividend + (by - 1)), Size.of(by))
        if name in self._bounded:
            size, bound = self._bounded[name]
            return self.node("Min", [self.number(size), self.integers([bound])], [ONE], "int64")
        for x in self._inputs:
            if Size.symbol(name) in x.shape:
                return self._dim(x, x.shape.index(Size.symbol(name)))
        for x in self._inputs:
            for axis, size in enumerate(x.shape):
                value = self._solved(x, axis, _linear_in(size, name))
                if value is not None:
                    return value
        return self._formula(name)

    def _solved(self, x: Tensor, axis: int, split: tuple[Size, Size] | None) -> Tensor | None:
        """Return ``(size - rest) / factor`` for the size of an axis, or None if that cannot be computed."""
        if split is None:
            return None
        factor, rest = split
        before = len(self.nodes)
        try:
            value = self._dim(x, axis)
            if rest != ZERO:
                value = self.node("Sub", [value, self.number(rest)], [ONE], "int64")
            return self._divided(value, factor)
        except EmitError:
            self._forget(before)
            return None

    def _forget(self, before: int) -> None:
        """Take back the nodes of an attempt."""
        if len(self.nodes) == before:
            return
        gone = {id(node.outputs[-1]) for node in self.nodes[before:]}
        for node in self.nodes[before:]:
            for at in range(len(node.inputs)):
                node.replace_input_with(at, None)
        del self.nodes[before:]
        self._known = {key: x for key, x in self._known.items() if id(x.value) not in gone}

    def _divided(self, value: Tensor, by: Size) -> Tensor:
        return value if by == ONE else self.node("Div", [value, self.number(by)], [ONE], "int64")

    def _formula(self, name: str) -> Tensor:
        """Compute a dimension that is named by its formula: ``(n) // (4)``, ``n % 4``, ``min(a, b)``."""
        try:
            formula = ast.parse(name, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise _unknown(name) from error
        match formula:
            case ast.BinOp(left=left, op=ast.FloorDiv() | ast.Mod() as op, right=right):
                a, b = (self.number(Size.parse(ast.unparse(part))) for part in (left, right))
                return self.node("Mod" if isinstance(op, ast.Mod) else "Div", [a, b], [ONE], "int64")
            case ast.Call(func=ast.Name(id="min" | "max" as fn), args=[left, right]):
                a, b = (self.number(Size.parse(ast.unparse(part))) for part in (left, right))
                first = self.node("Less" if fn == "min" else "Greater", [a, b], [ONE], "bool")
                return self.node("Where", [first, a, b], [ONE], "int64")
            case _:
                raise _unknown(name)


def _unknown(name: str) -> EmitError:
    return EmitError(f"The size {name} cannot be computed from the inputs of the region.")


def _factor(size: Size, whole: Size) -> Size:
    """Return how often ``whole`` goes into ``size``, by the term of the highest degree; 0 if it does not."""
    if whole.static:
        return ZERO
    lead = Size((whole.terms[-1],))
    quotients = (Size((term,)).divide(lead) for term in size.terms)
    return next((q for q in quotients if q is not None), ZERO)


def _linear_in(size: Size, name: str) -> tuple[Size, Size] | None:
    """Return ``a, b`` with ``size = a * name + b`` and neither containing ``name``, or None."""
    factor, rest = ZERO, ZERO
    for monomial, coefficient in size.terms:
        uses = monomial.count(name)
        if uses > 1:
            return None
        others = product(Size.symbol(other) for other in monomial if other != name) * coefficient
        if uses:
            factor += others
        else:
            rest += others
    return (factor, rest) if factor.terms else None
