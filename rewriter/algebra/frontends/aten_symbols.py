"""Symbolic integers of torch.export graphs as sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rewriter.algebra.frontends.aten_scope import Call, is_node
from rewriter.algebra.prims import Prim, constant, leaf, pointwise
from rewriter.algebra.sizes import ZERO, Size, product

__all__ = ["is_number", "symbol"]

_NUMBERS = frozenset("SymInt SymFloat SymBool int float bool".split())


def is_number(native: Any) -> bool:
    """Whether the result of a `torch.fx.Node` is a number, not a tensor."""
    return type(native.meta.get("val")).__name__ in _NUMBERS


def symbol(call: Call) -> Prim:
    """Return a number as a 0-d tensor; an integer is noted as a size as well."""
    value = call.node.native.meta["val"]
    kind = type(value).__name__
    if kind in ("int", "SymInt"):
        size = call.scope.graph.numbers.get(call.name)
        size = _size(call) if size is None else size
        if size is None:
            size = Size.of(value) if kind == "int" else Size.parse(str(value.node.expr))
        call.scope.sizes[call.name] = size
        return call.scope.number(size)
    if kind in ("float", "bool"):
        return constant(value)
    fn = _POINTWISE.get(_base(call.op))
    if fn is None or call.kwargs:
        return leaf(call.op, (), call.dtype or "float64", None)
    return pointwise(fn, *map(call.operand, range(len(call.args))))


def _base(op: str) -> str:
    return op.rpartition("::")[2].partition(".")[0]


def _size(call: Call) -> Size | None:
    """Return the integer as its operands determine it, None where torch's own formula has to be read."""
    name = _base(call.op)
    if name in ("sym_size", "sym_numel"):
        shape = call.tensor(0).shape
        return product(shape) if name == "sym_numel" else shape[call.arg(1)]
    rule = _RULES.get(name)
    known = all(not is_node(arg) or arg.name in call.scope.sizes for arg in call.args)
    if rule is None or not known or not all(is_node(a) or isinstance(a, int) for a in call.args):
        return None
    return rule(*map(call.size, call.args))


def _floor(a: Size, b: Size) -> Size | None:
    if a.static and b.static and b != ZERO:
        return Size.of(int(a) // int(b))
    return a.divide(b)


def _modulo(a: Size, b: Size) -> Size | None:
    if a.static and b.static and b != ZERO:
        return Size.of(int(a) % int(b))
    return ZERO if a.divide(b) is not None else None


def _larger(a: Size, b: Size) -> Size | None:
    return a if a.at_least(b) else b if b.at_least(a) else None


def _smaller(a: Size, b: Size) -> Size | None:
    return b if a.at_least(b) else a if b.at_least(a) else None


def _power(a: Size, b: Size) -> Size | None:
    return product([a] * int(b)) if b.static and 0 <= int(b) <= 8 else None


_RULES: dict[str, Callable[..., Size | None]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "neg": lambda a: -a,
    "pos": lambda a: a,
    "floordiv": _floor,
    "mod": _modulo,
    "pow": _power,
    "sym_max": _larger,
    "sym_min": _smaller,
    "sym_int": lambda a: a,
}

_POINTWISE = {
    "add": "add",
    "sub": "sub",
    "mul": "mul",
    "truediv": "div",
    "pow": "pow",
    "neg": "neg",
    "floordiv": "floordiv",
    "mod": "mod",
    "sym_sqrt": "sqrt",
    "_sym_sqrt": "sqrt",
    "sym_float": "identity",
    "sym_not": "not",
    **{fn: fn for fn in ("le", "lt", "ge", "gt", "eq", "ne")},
}
