"""Writes a computation as ONNX nodes of one opset: standard operators, or ONNX Runtime's own.

Operators changed their spelling between opsets (axes as an attribute, then as an input; a softmax
that flattens); everything here works from opset 11 on. Dynamic sizes are computed from the shapes of
the inputs, each once, and only where a reshape cannot do without.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from rewriter.algebra.prims import broadcast
from rewriter.algebra.sizes import ONE, ZERO, Size, SizeLike, product
from rewriter.lower.emitter import EmptyRow
from rewriter.lower.errors import EmitError

__all__ = ["OnnxEmitter", "Tensor", "opset_of_target"]

_END = np.iinfo(np.int64).max
_ATTENTION_SINCE = 23

_DTYPES = {
    {"FLOAT": "float32", "DOUBLE": "float64"}.get(t.name, t.name.lower()): t for t in ir.DataType
}  # fmt: skip
_HALVES = ("float16", "bfloat16")
_FLOATS = ("float32", "float64", *_HALVES)

_DIRECT = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "neg": "Neg", "abs": "Abs", "sign": "Sign", "exp": "Exp",
    "log": "Log", "sqrt": "Sqrt", "reciprocal": "Reciprocal", "pow": "Pow", "tanh": "Tanh", "sigmoid": "Sigmoid",
    "erf": "Erf", "sin": "Sin", "cos": "Cos", "floor": "Floor", "and": "And", "or": "Or",
    "not": "Not", "xor": "Xor", "eq": "Equal", "lt": "Less", "gt": "Greater", "isnan": "IsNaN", "isinf": "IsInf",
    "identity": "Identity", "softplus": "Softplus",
}  # fmt: skip
_BOOLEAN = frozenset("and or not xor eq ne lt le gt ge isnan isinf".split())


def opset_of_target(target: str) -> int | None:
    """Return 23 for ``"onnx:23"``, None for a target that takes the model's own opset.

    Raises
    ------
    EmitError
        If it is no target of ONNX programs.
    """
    if target in ("onnx", "ort"):
        return None
    kind, _, version = target.partition(":")
    if kind != "onnx" or not version.isascii() or not version.isdigit():
        raise EmitError(f"Target {target!r} is unknown for ONNX; expected onnx, onnx:<opset> or ort.")
    return int(version)


@dataclass(frozen=True, eq=False)
class Tensor:
    """What the emitter hands out: a value of the new nodes, with its shape and dtype."""

    value: ir.Value
    shape: tuple[Size, ...]
    dtype: str


class OnnxEmitter:
    """Emits ONNX nodes; see `rewriter.lower.emitter.Emitter` for the operations.

    Parameters
    ----------
    opset
        Version of the standard operators.
    target
        ``"onnx"``, ``"onnx:23"``… or ``"ort"``.
    prefix
        Begins the name of every node and value.

    Attributes
    ----------
    nodes
        What has been written so far, in order.
    domains
        Operator sets that the nodes use besides the standard one, with their versions.
    """

    def __init__(self, opset: int, target: str = "onnx", prefix: str = "") -> None:
        self.target = target
        self.nodes: list[ir.Node] = []
        self.domains: dict[str, int] = {}
        self._opset = opset
        self._fused = opset_of_target(target)
        self._prefix = prefix
        self._inputs: list[Tensor] = []
        self._known: dict[Any, Tensor] = {}
        self._quotients: dict[str, tuple[Size, int]] = {}
        self._wanted: set[str] = set()

    def input(self, value: ir.Value, shape: Sequence[Size], dtype: str) -> Tensor:
        """Declare a value that the nodes may read; sizes in its shape can be computed from it."""
        tensor = Tensor(value, tuple(shape), dtype)
        self._inputs.append(tensor)
        return tensor

    # what a handle is

    def shape(self, x: Tensor) -> tuple[Size, ...]:
        return x.shape

    def dtype(self, x: Tensor) -> str:
        return x.dtype

    # writing nodes

    def _node(
        self,
        op: str,
        inputs: Sequence[Tensor | None],
        shape: Sequence[Size],
        dtype: str,
        domain: str = "",
        **attributes: Any,
    ) -> Tensor:
        name = f"{self._prefix}{op.lower()}_{len(self.nodes)}"
        output = ir.Value(name=name, type=ir.TensorType(_DTYPES[dtype]))
        node = ir.Node(
            domain,
            op,
            [x and x.value for x in inputs],
            ir.convenience.convert_attributes(attributes),
            outputs=[output],
            name=name,
        )
        self.nodes.append(node)
        if domain:
            self.domains[domain] = 1
        return Tensor(output, tuple(shape), dtype)

    def _once(self, key: Any, make: Callable[[], Tensor]) -> Tensor:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def constant(self, array: np.ndarray | float | bool, dtype: str) -> Tensor:
        known = np.asarray(array).astype(_DTYPES[dtype].numpy())

        def make() -> Tensor:
            shape = tuple(Size.of(n) for n in known.shape)
            return self._node("Constant", [], shape, dtype, value=ir.Tensor(known, _DTYPES[dtype]))

        return self._once(("constant", dtype, known.shape, known.tobytes()), make)

    def _integers(self, values: Sequence[int]) -> Tensor:
        return self.constant(np.asarray(values, np.int64), "int64")

    # sizes

    def _dim(self, x: Tensor, axis: int) -> Tensor:
        shape = self._once(
            ("shape", id(x.value)), lambda: self._node("Shape", [x], [Size.of(len(x.shape))], "int64")
        )
        return self._once(
            ("dim", id(x.value), axis),
            lambda: self._node("Gather", [shape, self._integers([axis])], [ONE], "int64", axis=0),
        )

    def _number(self, size: Size) -> Tensor:
        """Return a size as an int64 tensor of shape [1].

        Raises
        ------
        EmitError
            If a dimension in it cannot be computed from the inputs.
        """
        if size.static:
            return self._integers([int(size)])
        return self._once(("size", size), lambda: self._polynomial(size))

    def _polynomial(self, size: Size) -> Tensor:
        for x in self._inputs:
            if size in x.shape:
                return self._dim(x, x.shape.index(size))
        total: Tensor | None = None
        for monomial, coefficient in size.terms:
            factors = [self._symbol(name) for name in monomial]
            if coefficient != 1 or not factors:
                factors.append(self._integers([coefficient]))
            term = factors[0]
            for factor in factors[1:]:
                term = self._node("Mul", [term, factor], [ONE], "int64")
            total = term if total is None else self._node("Add", [total, term], [ONE], "int64")
        return self._integers([0]) if total is None else total

    def _symbol(self, name: str) -> Tensor:
        """Return a dimension: from a shape that it is a part of, or by the formula that it is named by."""
        if name in self._wanted:
            raise EmitError(f"The size {name} cannot be computed from the inputs of the region.")
        self._wanted.add(name)
        try:
            return self._once(("size", Size.symbol(name)), lambda: self._solve(name))
        finally:
            self._wanted.discard(name)

    def _solve(self, name: str) -> Tensor:
        if name in self._quotients:
            dividend, by = self._quotients[name]
            return self._divided(self._number(dividend + (by - 1)), Size.of(by))
        for x in self._inputs:
            for axis, size in enumerate(x.shape):
                if size == Size.symbol(name):
                    return self._dim(x, axis)
        for x in self._inputs:
            for axis, size in enumerate(x.shape):
                split = _linear_in(size, name)
                if split is None:
                    continue
                factor, rest = split
                before = len(self.nodes)
                try:
                    value = self._dim(x, axis)
                    if rest != ZERO:
                        value = self._node("Sub", [value, self._number(rest)], [ONE], "int64")
                    return self._divided(value, factor)
                except EmitError:
                    self._forget(before)
        return self._formula(name)

    def _forget(self, before: int) -> None:
        """Take back the nodes of an attempt that failed."""
        gone = {id(node.outputs[0]) for node in self.nodes[before:]}
        for node in reversed(self.nodes[before:]):
            for at in range(len(node.inputs)):
                node.replace_input_with(at, None)
        del self.nodes[before:]
        self._known = {key: x for key, x in self._known.items() if id(x.value) not in gone}

    def _divided(self, value: Tensor, by: Size) -> Tensor:
        return value if by == ONE else self._node("Div", [value, self._number(by)], [ONE], "int64")

    def _formula(self, name: str) -> Tensor:
        """Compute a dimension that is named by its formula: ``(n) // (4)``, ``n % 4``, ``min(a, b)``."""
        unknown = EmitError(f"The size {name} cannot be computed from the inputs of the region.")
        try:
            formula = ast.parse(name, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise unknown from error
        match formula:
            case ast.BinOp(left=left, op=ast.FloorDiv() | ast.Mod() as op, right=right):
                a, b = (self._number(Size.parse(ast.unparse(part))) for part in (left, right))
                return self._node("Mod" if isinstance(op, ast.Mod) else "Div", [a, b], [ONE], "int64")
            case ast.Call(func=ast.Name(id="min" | "max" as fn), args=[left, right]):
                a, b = (self._number(Size.parse(ast.unparse(part))) for part in (left, right))
                first = self._node("Less" if fn == "min" else "Greater", [a, b], [ONE], "bool")
                return self._node("Where", [first, a, b], [ONE], "int64")
            case _:
                raise unknown

    def _vector(self, sizes: Sequence[Size]) -> Tensor:
        """Return sizes as an int64 vector."""
        if all(n.static for n in sizes):
            return self._integers([int(n) for n in sizes])
        parts = [self._number(n) for n in sizes]
        if len(parts) == 1:
            return parts[0]
        return self._once(
            ("sizes", tuple(sizes)),
            lambda: self._node("Concat", parts, [Size.of(len(parts))], "int64", axis=0),
        )

    def size(self, value: SizeLike, dtype: str = "int64") -> Tensor:
        scalar = self._scalar(Size.of(value))
        return scalar if dtype == "int64" else self.map("cast", scalar, dtype=dtype)

    def _scalar(self, size: Size) -> Tensor:
        if size.static:
            return self.constant(np.int64(int(size)), "int64")
        return self._once(
            ("scalar", size),
            lambda: self._node("Reshape", [self._number(size), self._integers([])], [], "int64"),
        )

    def ceil_div(self, n: SizeLike, by: int) -> Size:
        n = Size.of(n)
        if n.static:
            return Size.of(-(-int(n) // by))
        exact = n.divide(by)
        if exact is not None:
            return exact
        name = f"ceil(({n}) / {by})"
        self._quotients[name] = (n, by)
        return Size.symbol(name)

    # views

    def reshape(self, x: Tensor, shape: Sequence[SizeLike]) -> Tensor:
        target = tuple(Size.of(n) for n in shape)
        if target == x.shape:
            return x
        if any(n == ZERO for n in target):
            raise EmitError(f"A reshape to {[n.plain() for n in target]} has an empty axis, which ONNX cannot spell.")
        # 0 copies the size at the same place, -1 is whatever is left
        dims = [ZERO if not n.static and x.shape[k : k + 1] == (n,) else n for k, n in enumerate(target)]
        computed = [k for k, n in enumerate(dims) if not n.static]
        if computed:
            dims[self._left_over(dims, computed)] = Size.of(-1)
        return self._node("Reshape", [x, self._vector(dims)], target, x.dtype)

    def _left_over(self, dims: Sequence[Size], computed: Sequence[int]) -> int:
        """Return the place of the size to leave to the reshape: one that cannot be computed, if there is one."""
        if len(computed) > 1:
            for k in computed:
                before = len(self.nodes)
                try:
                    self._number(dims[k])
                except EmitError:
                    return k
                finally:
                    self._forget(before)
        return computed[-1]

    def permute(self, x: Tensor, order: Sequence[int]) -> Tensor:
        rank = len(x.shape)
        order = [k % rank for k in order]
        if order == list(range(rank)):
            return x
        return self._node("Transpose", [x], [x.shape[k] for k in order], x.dtype, perm=order)

    def slice(self, x: Tensor, axis: int, start: SizeLike, size: SizeLike, step: int = 1) -> Tensor:
        axis %= len(x.shape)
        start, size = Size.of(start), Size.of(size)
        whole = x.shape[axis]
        if start == ZERO and size == whole and step == 1:
            return x
        end = start + (size - 1) * step + 1
        bounds = [self._vector([start]), self._integers([_END]) if end == whole else self._vector([end])]
        shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
        last = [self._integers([axis]), self._integers([step])]
        return self._node("Slice", [x, *bounds, *last], shape, x.dtype)

    def expand(self, x: Tensor, shape: Sequence[SizeLike]) -> Tensor:
        target = tuple(Size.of(n) for n in shape)
        own = (ONE,) * (len(target) - len(x.shape)) + x.shape
        if target == x.shape:
            return x
        # ONNX broadcasts both ways: 1 keeps what is there
        wanted = [ONE if n == m else n for n, m in zip(target, own, strict=True)]
        return self._node("Expand", [x, self._vector(wanted)], target, x.dtype)

    def concat(self, xs: Sequence[Tensor], axis: int) -> Tensor:
        if len(xs) == 1:
            return xs[0]
        axis %= len(xs[0].shape)
        total = sum((x.shape[axis] for x in xs), ZERO)
        shape = (*xs[0].shape[:axis], total, *xs[0].shape[axis + 1 :])
        self._same_dtype("concat", xs)
        return self._node("Concat", list(xs), shape, xs[0].dtype, axis=axis)

    def pad(self, x: Tensor, axis: int, before: SizeLike, after: SizeLike, value: float = 0.0) -> Tensor:
        if x.dtype == "bool":  # not in the older opsets
            padded = self.pad(self.map("cast", x, dtype="int32"), axis, before, after, float(bool(value)))
            return self.map("cast", padded, dtype="bool")
        rank = len(x.shape)
        axis %= rank
        before, after = Size.of(before), Size.of(after)
        if before == after == ZERO:
            return x
        pads = [ZERO] * (2 * rank)
        pads[axis], pads[rank + axis] = before, after
        shape = (*x.shape[:axis], before + x.shape[axis] + after, *x.shape[axis + 1 :])
        return self._node("Pad", [x, self._vector(pads), self.constant(value, x.dtype)], shape, x.dtype)

    def gather(self, data: Tensor, indices: Tensor, axis: int) -> Tensor:
        axis %= len(data.shape)
        shape = (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])
        return self._node("Gather", [data, indices], shape, data.dtype, axis=axis)

    def iota(self, size: SizeLike, dtype: str = "int64") -> Tensor:
        size = Size.of(size)
        bounds = [self._scalar(ZERO), self._scalar(size), self._scalar(ONE)]
        places = self._node("Range", bounds, [size], "int64")
        return places if dtype == "int64" else self.map("cast", places, dtype=dtype)

    # arithmetic

    def map(self, fn: str, *operands: Tensor, dtype: str | None = None) -> Tensor:
        if fn == "cast":
            (x,) = operands
            if dtype is None:
                raise EmitError("A cast needs a dtype.")
            if x.dtype == dtype:
                return x
            return self._node("Cast", [x], x.shape, dtype, to=_DTYPES[dtype].value)
        if fn == "where":
            return self._where(*operands)
        self._same_dtype(fn, operands)
        x = operands[0]
        if fn in _DIRECT:
            shape = broadcast(*(o.shape for o in operands))
            return self._node(_DIRECT[fn], list(operands), shape, "bool" if fn in _BOOLEAN else x.dtype)
        floating = x.dtype in _FLOATS
        match fn:
            case "div" if floating:
                return self._pair("Div", *operands)
            case "div":
                return self._pair("Div", *(self.map("cast", o, dtype="float32") for o in operands))
            case "exp2":
                return self.map("pow", self.constant(2.0, x.dtype), x)
            case "rsqrt":
                return self.map("reciprocal", self.map("sqrt", x))
            case "relu":
                return self.map("maximum", x, self.constant(0, x.dtype))
            case "maximum" | "minimum" if floating or self._opset >= 12:
                return self._pair("Max" if fn == "maximum" else "Min", *operands)
            case "maximum":
                return self._where(self.map("gt", *operands), *operands)
            case "minimum":
                return self._where(self.map("lt", *operands), *operands)
            case "ne":
                return self.map("not", self.map("eq", *operands))
            case "le" | "ge" if self._opset >= 12:
                return self._pair("LessOrEqual" if fn == "le" else "GreaterOrEqual", *operands, dtype="bool")
            case "le" | "ge":
                return self.map("or", self.map("lt" if fn == "le" else "gt", *operands), self.map("eq", *operands))
            case "floordiv" if floating:
                return self.map("floor", self._pair("Div", *operands))
            case "mod" if floating:
                return self.map("sub", x, self.map("mul", self.map("floordiv", *operands), operands[1]))
            case "mod":
                return self._pair("Mod", *operands)
            case "floordiv":  # integer division truncates: make it exact first
                return self._pair("Div", self.map("sub", x, self.map("mod", *operands)), operands[1])
            case _:
                raise EmitError(f"The function {fn!r} is not a primitive that ONNX can spell.")

    def _pair(self, op: str, a: Tensor, b: Tensor, dtype: str | None = None) -> Tensor:
        return self._node(op, [a, b], broadcast(a.shape, b.shape), dtype or a.dtype)

    def _where(self, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
        self._same_dtype("where", (a, b))
        if a.dtype == "bool":  # ONNX Runtime has no kernel that selects booleans
            chosen = self.map("and", condition, a)
            return self.map("or", chosen, self.map("and", self.map("not", condition), b))
        return self._node("Where", [condition, a, b], broadcast(condition.shape, a.shape, b.shape), a.dtype)

    def _same_dtype(self, fn: str, operands: Sequence[Tensor]) -> None:
        if len({x.dtype for x in operands}) > 1:
            raise EmitError(f"The operands of {fn} have dtypes {[x.dtype for x in operands]}; ONNX wants them equal.")

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        self._same_dtype("matmul", (a, b))
        rows, columns = a.shape[-2:-1], b.shape[-1:] if len(b.shape) > 1 else ()
        shape = (*broadcast(a.shape[:-2], b.shape[:-2]), *rows, *columns)
        return self._node("MatMul", [a, b], shape, a.dtype)

    def softmax(self, x: Tensor, axis: int) -> Tensor:
        axis %= len(x.shape)
        last = len(x.shape) - 1
        if self._opset < 13 and axis != last:  # flattens the axes from ``axis`` on into one
            order = [k for k in range(last + 1) if k != axis] + [axis]
            back = [order.index(k) for k in range(last + 1)]
            return self.permute(self.softmax(self.permute(x, order), last), back)
        return self._node("Softmax", [x], x.shape, x.dtype, axis=axis)

    def reduce(self, fn: str, x: Tensor, axis: int) -> Tensor:
        if fn not in ("sum", "max", "min"):
            raise EmitError(f"The reduction {fn!r} is not one of sum, max and min.")
        if x.dtype == "bool":
            return self.map("cast", self.reduce(fn, self.map("cast", x, dtype="int32"), axis), dtype="bool")
        axis %= len(x.shape)
        shape = (*x.shape[:axis], ONE, *x.shape[axis + 1 :])
        op = f"Reduce{fn.capitalize()}"
        if self._opset >= (13 if fn == "sum" else 18):
            return self._node(op, [x, self._integers([axis])], shape, x.dtype, keepdims=1)
        return self._node(op, [x], shape, x.dtype, axes=[axis], keepdims=1)

    # attention

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        bias: Tensor | None = None,
        causal: bool = False,
        empty_row: EmptyRow = "never",
    ) -> Tensor:
        self._same_dtype("attention", (q, k, v) if bias is None else (q, k, v, bias))
        if q.shape[1].divide(k.shape[1]) is None:
            raise EmitError(f"{q.shape[1]} query heads are no multiple of {k.shape[1]} key heads.")
        if self._fused is not None and self._opset >= _ATTENTION_SINCE and self._standard_fits(q, empty_row):
            out = self._standard(q, k, v, scale, bias, causal)
        elif self.target == "ort" and self._runtime_fits(q, k, v, causal):
            out = self._runtime(q, k, v, scale, bias, causal)
        else:
            bias, causal = self._with_causal(q, k, bias, causal), False
            out = self._plain(q, k, v, scale, bias)
        if empty_row == "zero":
            out = self._zero_where_empty(out, self._with_causal(q, k, bias, causal))
        return out

    def _with_causal(self, q: Tensor, k: Tensor, bias: Tensor | None, causal: bool) -> Tensor | None:
        """Return bias and causal mask as one bias."""
        if not causal:
            return bias
        queries, keys = q.shape[2], k.shape[2]
        i, j = self.reshape(self.iota(queries), [queries, 1]), self.iota(keys)
        masked = self.constant(-np.inf, q.dtype)
        mask = self._where(self.map("le", j, i), self.constant(0.0, q.dtype), masked)
        mask = self.reshape(mask, [1, 1, queries, keys])
        return mask if bias is None else self.map("add", bias, mask)

    def _zero_where_empty(self, out: Tensor, bias: Tensor | None) -> Tensor:
        """Return 0 for queries that the bias shows no key; the mask is read, not the scores: it has no heads."""
        if bias is None:
            return out
        best = self.reduce("max", bias, 3)
        empty = self.map("eq", best, self.constant(-np.inf, bias.dtype))
        return self._where(empty, self.constant(0.0, out.dtype), out)

    def _plain(self, q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None) -> Tensor:
        batch, heads, queries, _ = q.shape
        group = heads.divide(k.shape[1])
        keys, width = k.shape[2], v.shape[3]
        if scale != 1.0:
            q = self.map("mul", q, self.constant(scale, q.dtype))
        folded = group is not None and group != ONE
        if folded:  # the query heads of one key head are more rows of one product
            rows = product([group or ONE, queries])
            q = self.reshape(q, [batch, k.shape[1], rows, q.shape[3]])
        weights = self.matmul(q, self.permute(k, [0, 1, 3, 2]))
        if bias is not None:
            weights = self.map("add", self.reshape(weights, [batch, heads, queries, keys]), bias)
        weights = self.softmax(weights, 3)
        if folded:
            weights = self.reshape(weights, [batch, k.shape[1], rows, keys])
        return self.reshape(self.matmul(weights, v), [batch, heads, queries, width])

    def _standard_fits(self, q: Tensor, empty_row: EmptyRow) -> bool:
        # the operator leaves an empty row open: ONNX Runtime gives 0, the definition NaN; in float64
        # ONNX Runtime computes it in float32
        return empty_row != "nan" and q.dtype in ("float32", "float16")

    def _standard(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None, causal: bool
    ) -> Tensor:
        inputs = [q, k, v]
        if bias is not None:
            inputs.append(self._full_rows(bias, q, k))
        shape = (*q.shape[:3], v.shape[3])
        return self._node("Attention", inputs, shape, q.dtype, scale=float(scale), is_causal=int(causal))

    def _full_rows(self, bias: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """Broadcast queries and keys of a bias: ONNX Runtime broadcasts batch and heads only."""
        return self.expand(bias, [*bias.shape[:2], q.shape[2], k.shape[2]])

    def _runtime_fits(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> bool:
        # MultiHeadAttention has one key head per query head, values as wide as keys, and aligns a
        # causal mask to the last key
        square = not causal or q.shape[2] == k.shape[2]
        same = q.shape[1] == k.shape[1] and q.shape[1].static and q.shape[3] == v.shape[3]
        return same and square and q.dtype in ("float32", "float16")

    def _runtime(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None, causal: bool
    ) -> Tensor:
        batch, heads, queries, _ = q.shape
        packed = [batch, queries, heads * v.shape[3]]
        inputs: list[Tensor | None] = [self.reshape(self.permute(q, [0, 2, 1, 3]), [batch, queries, heads * q.shape[3]])]
        inputs += [k, v]
        if bias is not None:
            inputs += [None, None, self._full_rows(bias, q, k)]
        out = self._node(
            "MultiHeadAttention", inputs, packed, q.dtype, "com.microsoft",
            num_heads=int(heads), scale=float(scale), unidirectional=int(causal),
        )  # fmt: skip
        return self.permute(self.reshape(out, [batch, queries, heads, v.shape[3]]), [0, 2, 1, 3])


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
