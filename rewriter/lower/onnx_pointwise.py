"""How the pointwise functions of `rewriter.algebra.prims.POINTWISE` are spelled in ONNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from rewriter.algebra.prims import broadcast
from rewriter.lower.errors import EmitError

if TYPE_CHECKING:
    from rewriter.lower.onnx_emitter import OnnxEmitter
    from rewriter.lower.onnx_writer import Tensor

__all__ = ["FLOATS", "pointwise", "same_dtype", "where"]

FLOATS = ("float32", "float64", "float16", "bfloat16")

_COMPARE_EQUAL_SINCE = 12
_INTEGER_MAX_SINCE = 12

_OPERATORS = {
    "abs": "Abs", "add": "Add", "and": "And", "cos": "Cos", "eq": "Equal", "erf": "Erf", "exp": "Exp",
    "floor": "Floor", "gt": "Greater", "identity": "Identity", "isnan": "IsNaN", "log": "Log",
    "lt": "Less", "mul": "Mul", "neg": "Neg", "not": "Not", "or": "Or", "pow": "Pow",
    "reciprocal": "Reciprocal", "sigmoid": "Sigmoid", "sign": "Sign", "sin": "Sin",
    "softplus": "Softplus", "sqrt": "Sqrt", "sub": "Sub", "tanh": "Tanh", "xor": "Xor",
}  # fmt: skip
_BOOLEAN = frozenset("and or not xor eq lt gt isnan".split())


def pointwise(e: OnnxEmitter, fn: str, *operands: Tensor) -> Tensor:
    """Write a pointwise function of operands of one dtype.

    Raises
    ------
    EmitError
        If dtypes differ, or the function is unknown.
    """
    same_dtype(fn, *operands)
    if fn in _OPERATORS:
        return _node(e, _OPERATORS[fn], *operands, dtype="bool" if fn in _BOOLEAN else None)
    if fn not in _COMPOSED:
        raise EmitError(f"The function {fn!r} is not a primitive that ONNX can spell.")
    return _COMPOSED[fn](e, *operands)


def same_dtype(what: str, *operands: Tensor) -> None:
    """Raise `EmitError` unless the operands have one dtype."""
    if len({x.dtype for x in operands}) > 1:
        raise EmitError(
            f"The operands of {what} have dtypes {[x.dtype for x in operands]}; ONNX wants them equal."
        )


def where(e: OnnxEmitter, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Write ``a`` where the condition holds, else ``b``."""
    same_dtype("where", a, b)
    if a.dtype == "bool":  # ONNX Runtime has no kernel that selects booleans
        return e.map("or", e.map("and", condition, a), e.map("and", e.map("not", condition), b))
    shape = broadcast(condition.shape, a.shape, b.shape)
    return e.node("Where", [condition, a, b], shape, a.dtype)


def _node(e: OnnxEmitter, op: str, *operands: Tensor, dtype: str | None = None) -> Tensor:
    return e.node(op, operands, broadcast(*(x.shape for x in operands)), dtype or operands[0].dtype)


def _div(e: OnnxEmitter, a: Tensor, b: Tensor) -> Tensor:
    if a.dtype not in FLOATS:
        a, b = e.map("cast", a, dtype="float32"), e.map("cast", b, dtype="float32")
    return _node(e, "Div", a, b)


def _floordiv(e: OnnxEmitter, a: Tensor, b: Tensor) -> Tensor:
    if a.dtype in FLOATS:
        return e.map("floor", _node(e, "Div", a, b))
    # ONNX truncates: make the division exact first
    return _node(e, "Div", e.map("sub", a, e.map("mod", a, b)), b)


def _mod(e: OnnxEmitter, a: Tensor, b: Tensor) -> Tensor:
    if a.dtype in FLOATS:
        return e.map("sub", a, e.map("mul", e.map("floordiv", a, b), b))
    return _node(e, "Mod", a, b)


def _extreme(op: str, better: str) -> Callable[[OnnxEmitter, Tensor, Tensor], Tensor]:
    def write(e: OnnxEmitter, a: Tensor, b: Tensor) -> Tensor:
        if a.dtype in FLOATS or e.opset >= _INTEGER_MAX_SINCE:
            return _node(e, op, a, b)
        return where(e, e.map(better, a, b), a, b)

    return write


def _or_equal(op: str, strict: str) -> Callable[[OnnxEmitter, Tensor, Tensor], Tensor]:
    def write(e: OnnxEmitter, a: Tensor, b: Tensor) -> Tensor:
        if e.opset >= _COMPARE_EQUAL_SINCE:
            return _node(e, op, a, b, dtype="bool")
        return e.map("or", e.map(strict, a, b), e.map("eq", a, b))

    return write


def _exp2(e: OnnxEmitter, x: Tensor) -> Tensor:
    return e.map("pow", e.constant(2.0, x.dtype), x)


def _isinf(e: OnnxEmitter, x: Tensor) -> Tensor:
    # ONNX Runtime has no IsInf for half precision
    return e.map("eq", e.map("abs", x), e.constant(np.inf, x.dtype))


def _ne(e: OnnxEmitter, a: Tensor, b: Tensor) -> Tensor:
    return e.map("not", e.map("eq", a, b))


def _relu(e: OnnxEmitter, x: Tensor) -> Tensor:
    return e.map("maximum", x, e.constant(0, x.dtype))


def _rsqrt(e: OnnxEmitter, x: Tensor) -> Tensor:
    return e.map("reciprocal", e.map("sqrt", x))


_COMPOSED: dict[str, Callable[..., Tensor]] = {
    "div": _div,
    "exp2": _exp2,
    "floordiv": _floordiv,
    "ge": _or_equal("GreaterOrEqual", "gt"),
    "isinf": _isinf,
    "le": _or_equal("LessOrEqual", "lt"),
    "maximum": _extreme("Max", "gt"),
    "minimum": _extreme("Min", "lt"),
    "mod": _mod,
    "ne": _ne,
    "relu": _relu,
    "rsqrt": _rsqrt,
}
