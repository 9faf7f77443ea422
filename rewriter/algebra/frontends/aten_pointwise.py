"""aten operators that compute every entry from the entries at the same place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from rewriter.algebra.frontends.activations import clip, hard_sigmoid, hard_swish, silu
from rewriter.algebra.frontends.aten_scope import Call, Handler, Result
from rewriter.algebra.frontends.guards import selected
from rewriter.algebra.prims import (
    Prim,
    cast,
    constant,
    expand,
    pointwise,
)

__all__ = ["POINTWISE", "real", "recast"]


def _map(fn: str, arity: int, call: Call) -> Result:
    return pointwise(fn, *(call.operand(at) for at in range(arity)))


def _scaled(call: Call, x: Prim, factor: object) -> Prim:
    """Return ``factor * x``; 1 is left out."""
    return x if factor == 1 else pointwise("mul", x, _number(call, factor), dtype=x.dtype)


def _number(call: Call, arg: object) -> Prim:
    return call.of(arg) if hasattr(arg, "op") else call.scalar(arg)


def _add(call: Call) -> Result:
    a, b = call.operand(0), _scaled(call, call.operand(1), call.arg(2, "alpha", 1))
    return pointwise("or" if call.dtype == "bool" else "add", a, b)


def _sub(call: Call) -> Result:
    return pointwise("sub", call.operand(0), _scaled(call, call.operand(1), call.arg(2, "alpha", 1)))


def _rsub(call: Call) -> Result:
    return pointwise("sub", call.operand(1), _scaled(call, call.operand(0), call.arg(2, "alpha", 1)))


def _mul(call: Call) -> Result:
    return pointwise("and" if call.dtype == "bool" else "mul", call.operand(0), call.operand(1))


def _div(call: Call) -> Result:
    a, b, mode = call.operand(0), call.operand(1), call.arg(2, "rounding_mode")
    if mode is None:
        return pointwise("div", a, b)
    natural = call.scope.progressions.natural
    if mode == "trunc" and not (natural(a) and natural(b)):
        return None
    return pointwise("floordiv", a, b)


def _addcmul(fn: str, call: Call) -> Result:
    product = pointwise(fn, call.operand(1), call.operand(2))
    return pointwise("add", call.operand(0), _scaled(call, product, call.arg(3, "value", 1)))


def _lerp(call: Call) -> Result:
    way = pointwise("sub", call.operand(1), call.operand(0))
    return pointwise("add", call.operand(0), pointwise("mul", way, call.operand(2)))


def _square(call: Call) -> Result:
    return pointwise("mul", call.tensor(0), call.tensor(0))


def _log1p(call: Call) -> Result:
    return pointwise("log", pointwise("add", call.tensor(0), call.scalar(1)))


def _expm1(call: Call) -> Result:
    return pointwise("sub", pointwise("exp", call.tensor(0)), call.scalar(1))


def _bitwise(fn: str, call: Call) -> Result:
    return pointwise(fn, call.operand(0), call.operand(1)) if call.dtype == "bool" else None


def _bitwise_not(call: Call) -> Result:
    return pointwise("not", call.operand(0)) if call.dtype == "bool" else None


def _truth(fn: str, arity: int, call: Call) -> Result:
    return pointwise(fn, *(call.operand(at) for at in range(arity)), dtype="bool")


def _where(call: Call) -> Result:
    condition, a, b = call.tensor(0), call.operand(1), call.operand(2)
    return selected(condition, a, b)


def _masked_fill(call: Call) -> Result:
    return selected(call.tensor(1), call.operand(2), call.tensor(0))


def _clamp(call: Call) -> Result:
    x = call.tensor(0)
    for at, (name, fn) in enumerate([("min", "maximum"), ("max", "minimum")], 1):
        if call.arg(at, name) is not None:
            x = pointwise(fn, x, call.operand(at, name))
    return x


def _clamp_one(fn: str, call: Call) -> Result:
    return pointwise(fn, call.tensor(0), call.operand(1))


def _hardtanh(call: Call) -> Result:
    bounds = [
        call.scalar(call.arg(at, name, value)) for at, name, value in ((1, "min_val", -1), (2, "max_val", 1))
    ]
    return pointwise("minimum", pointwise("maximum", call.tensor(0), bounds[0]), bounds[1])


def _ceil(call: Call) -> Result:
    return pointwise("neg", pointwise("floor", pointwise("neg", call.tensor(0))))


def _of_one(fn: Callable[[Prim], Prim], call: Call) -> Result:
    return fn(call.tensor(0))


def _softplus(call: Call) -> Result:
    plain = call.arg(1, "beta", 1) == 1 and call.arg(2, "threshold", 20) >= 20
    return pointwise("softplus", call.tensor(0)) if plain else None


def _nan_to_num(call: Call) -> Result:
    x = call.tensor(0)
    if x.dtype not in _LARGEST:
        return None
    found, largest = x, _LARGEST[x.dtype]
    for at, name, infinity, default in ((2, "posinf", _INF, largest), (3, "neginf", -_INF, -largest)):
        new = call.arg(at, name)
        new = default if new is None else new
        if new != infinity:
            found = selected(pointwise("eq", x, call.scalar(infinity)), call.scalar(new), found)
    return selected(pointwise("isnan", x), call.scalar(call.arg(1, "nan") or 0.0), found)


_INF = float("inf")
_LARGEST = {
    "float16": 65504.0,
    "bfloat16": 2.0**127 * (2 - 2.0**-7),
    "float32": 2.0**127 * (2 - 2.0**-23),
    "float64": 2.0**1023 * (2 - 2.0**-52),
}


def _copy(call: Call) -> Result:
    return recast(call, call.tensor(0))


def _copy_into(call: Call) -> Result:
    source = recast(call, call.tensor(1))
    return None if source is None else expand(source, call.shape)


def recast(call: Call, x: Prim) -> Prim | None:
    """Return a tensor in the dtype of the result, None where that is not understood."""
    dtype = call.dtype
    if dtype is None or x.dtype is None or "complex" in dtype or "complex" in x.dtype:
        return None if dtype != x.dtype else x
    return x if x.dtype == dtype else cast(x, dtype)


def real(call: Call, x: Prim) -> Prim:
    """Return what a sum adds up: truth values count as 0 and 1."""
    return cast(x, call.dtype or "int64") if x.dtype == "bool" else x


def _dropout(call: Call) -> Result:
    return call.tensor(0) if not call.arg(1, "p") or not call.arg(2, "train") else None


def _native_dropout(call: Call) -> Result:
    x = call.tensor(0)
    if call.arg(1, "p") and call.arg(2, "train") is not False:
        return None
    return [x, expand(constant(True), x.shape)]


_UNARY = (
    "neg exp exp2 log sqrt rsqrt reciprocal tanh sigmoid relu erf sin cos abs sign floor isnan isinf".split()
)
_BINARY = {
    "maximum": "maximum",
    "minimum": "minimum",
    "pow": "pow",
    "true_divide": "div",
    "floor_divide": "floordiv",
    "remainder": "mod",
}
_COMPARISONS = {
    **{name: name for name in ("le", "lt", "ge", "gt", "eq", "ne")},
    **{"less_equal": "le", "less": "lt", "greater_equal": "ge", "greater": "gt", "not_equal": "ne"},
}

POINTWISE: dict[str, Handler] = {
    **{name: partial(_map, name, 1) for name in _UNARY},
    **{name: partial(_map, fn, 2) for name, fn in _BINARY.items()},
    **{name: partial(_truth, fn, 2) for name, fn in _COMPARISONS.items()},
    **{f"logical_{fn}": partial(_truth, fn, 2) for fn in ("and", "or", "xor")},
    **{f"bitwise_{fn}": partial(_bitwise, fn) for fn in ("and", "or", "xor")},
    **{f"__{fn}__": partial(_bitwise, fn) for fn in ("and", "or", "xor")},
    "logical_not": partial(_truth, "not", 1),
    "bitwise_not": _bitwise_not,
    "negative": partial(_map, "neg", 1),
    "max.other": partial(_map, "maximum", 2),
    "min.other": partial(_map, "minimum", 2),
    "add": _add,
    "sub": _sub,
    "subtract": _sub,
    "rsub": _rsub,
    "mul": _mul,
    "multiply": _mul,
    "div": _div,
    "divide": _div,
    "addcmul": partial(_addcmul, "mul"),
    "addcdiv": partial(_addcmul, "div"),
    "lerp": _lerp,
    "square": _square,
    "log1p": _log1p,
    "expm1": _expm1,
    "ceil": _ceil,
    "softplus": _softplus,
    "silu": partial(_of_one, silu),
    "hardsigmoid": partial(_of_one, hard_sigmoid),
    "hardswish": partial(_of_one, hard_swish),
    "where": _where,
    "masked_fill": _masked_fill,
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": partial(_clamp_one, "maximum"),
    "clamp_max": partial(_clamp_one, "minimum"),
    "hardtanh": _hardtanh,
    "relu6": partial(_of_one, partial(clip, low=0.0, high=6.0)),
    "nan_to_num": _nan_to_num,
    **dict.fromkeys(
        "clone contiguous alias detach detach_ lift_fresh lift_fresh_copy to _to_copy type_as".split(), _copy
    ),
    "copy": _copy_into,
    "dropout": _dropout,
    "feature_dropout": _dropout,
    "alpha_dropout": _dropout,
    "native_dropout": _native_dropout,
}
"""Translations by operator name, all overloads, or one where the name has a dot."""
