"""ONNX operators that compute: pointwise functions, contractions, reductions, normalisers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from functools import reduce as fold
from string import ascii_letters

import numpy as np

from rewriter.algebra.equation import Equation
from rewriter.algebra.frontends.activations import clip, hard_swish, silu
from rewriter.algebra.frontends.guards import selected
from rewriter.algebra.frontends.onnx_scope import DTYPES, Call, Handler, Result
from rewriter.algebra.frontends.sums import sum_of_features
from rewriter.algebra.prims import (
    Constant,
    Expand,
    Iota,
    Map,
    Permute,
    Prim,
    Reshape,
    Slice,
    cast,
    constant,
    einsum,
    expand,
    iota,
    matmul,
    pointwise,
    reduce,
    reshape,
    softmax,
    squeeze,
    sum_,
    swap,
)
from rewriter.algebra.sizes import ONE, Size, product

__all__ = ["OPERATORS"]

LARGEST = 1 << 20
"""Constants with more entries are not read to see whether they are all equal."""

# pointwise


def _map(fn: str, call: Call) -> Result:
    return pointwise(fn, *(x for x in call.inputs if x is not None))


def _variadic(fn: str, call: Call) -> Result:
    operands = [x for x in call.inputs if x is not None]
    return fold(partial(pointwise, fn), operands)


def _mean(call: Call) -> Result:
    total = fold(partial(pointwise, "add"), [x for x in call.inputs if x is not None])
    return pointwise("mul", total, constant(1.0 / len(call.inputs), total.dtype))


def _div(call: Call) -> Result:
    a, b = call[0], call[1]
    if a.dtype is None or not a.dtype.startswith(("int", "uint")):
        return pointwise("div", a, b)
    if _natural(call, 0) and _natural(call, 1):
        return pointwise("floordiv", a, b)
    return cast(pointwise("div", a, b, dtype="float64"), a.dtype)  # rounds towards zero


def _natural(call: Call, at: int) -> bool:
    """Whether an integer operand is known not to be negative."""
    array, known = call.array(at), call.integers(at)
    if array is not None:
        return bool((array >= 0).all())
    if known is not None:
        return all(size is not None and size.at_least(0) for size in known.values)
    x = call[at]
    while isinstance(x.form, (Reshape, Permute, Expand, Slice)) or x.form == Map("identity"):
        x = x.inputs[0]
    return isinstance(x.form, Iota) and x.form.start.at_least(0) and x.form.step.at_least(0)


def _pow(call: Call) -> Result:
    return pointwise("pow", call[0], call[1], dtype=call[0].dtype)


def _mod(call: Call) -> Result:
    natural = call.attribute("fmod", 0) and not (_natural(call, 0) and _natural(call, 1))
    return None if natural else pointwise("mod", call[0], call[1])


def _ceil(call: Call) -> Result:
    return pointwise("neg", pointwise("floor", pointwise("neg", call[0])))


def _isinf(call: Call) -> Result:
    one_sided = not (call.attribute("detect_negative", 1) and call.attribute("detect_positive", 1))
    return None if one_sided else pointwise("isinf", call[0])


def _cast(call: Call) -> Result:
    dtype = DTYPES.get(call.attribute("to"))
    return None if dtype is None or dtype == "string" or "complex" in dtype else _recast(call[0], dtype)


def _cast_like(call: Call) -> Result:
    return None if call[1].dtype is None else _recast(call[0], call[1].dtype)


def _recast(x: Prim, dtype: str) -> Prim:
    return x if x.dtype == dtype else cast(x, dtype)


def _clip(call: Call) -> Result:
    x = call[0]
    for at, (name, fn) in enumerate([("min", "maximum"), ("max", "minimum")], 1):
        attribute = call.attribute(name)
        bound = call.get(at) if attribute is None else constant(attribute, x.dtype)
        if bound is not None:
            x = pointwise(fn, x, bound)
    return x


def _hard_sigmoid(call: Call) -> Result:
    x = call[0]
    alpha, beta = (constant(call.attribute(n, v), x.dtype) for n, v in (("alpha", 0.2), ("beta", 0.5)))
    return clip(pointwise("add", pointwise("mul", x, alpha), beta), 0.0, 1.0)


def _swish(call: Call) -> Result:
    return silu(call[0], call.attribute("alpha", 1.0))


def _hard_swish(call: Call) -> Result:
    return hard_swish(call[0])


def _where(call: Call) -> Result:
    return selected(call[0], _number(call[1]), _number(call[2]))


def _number(x: Prim) -> Prim:
    """Return a constant that is one number everywhere as that number, spread over the same places."""
    if not isinstance(x.form, Constant) or not 1 < (product(x.shape).known() or 0) <= LARGEST:
        return x
    array = np.asarray(x.form.load())
    uniform = bool((array == array.flat[0]).all())
    return expand(constant(array.flat[0], x.dtype), x.shape) if uniform else x


def _identity(call: Call) -> Result:
    return call[0]


def _dropout(call: Call) -> Result:
    ratio, training = call.array(1), call.array(2)
    inactive = (ratio is not None and not ratio.any()) or (training is not None and not training.any())
    if call.present(2) and not inactive:
        return None
    return [call[0], expand(constant(True), call[0].shape)]


# contractions


def _matmul(call: Call) -> Result:
    return matmul(call[0], call[1])


def _scaled(x: Prim, factor: float) -> Prim:
    return x if factor == 1 else pointwise("mul", x, constant(float(factor), x.dtype))


def _gemm(call: Call) -> Result:
    a, b, c = call[0], call[1], call.get(2)
    a = swap(a, 0, 1) if call.attribute("transA", 0) else a
    b = swap(b, 0, 1) if call.attribute("transB", 0) else b
    result = _scaled(matmul(a, b), call.attribute("alpha", 1.0))
    beta = call.attribute("beta", 1.0)
    return result if c is None or not beta else pointwise("add", result, _scaled(c, beta), dtype=result.dtype)


def _fused_matmul(call: Call) -> Result:
    a, b = call[0], call[1]
    if call.attribute("transBatchA", 0) or call.attribute("transBatchB", 0):
        return None
    if (call.attribute("transA", 0) and len(a.shape) < 2) or (
        call.attribute("transB", 0) and len(b.shape) < 2
    ):
        return None
    a = swap(a, -1, -2) if call.attribute("transA", 0) else a
    b = swap(b, -1, -2) if call.attribute("transB", 0) else b
    return _scaled(matmul(a, b), call.attribute("alpha", 1.0))


def _einsum(call: Call) -> Result:
    operands = [x for x in call.inputs if x is not None]
    equation = Equation.parse(call.attribute("equation"))
    spec = None if equation is None else equation.explicit([len(x.shape) for x in operands])
    return None if spec is None else einsum(spec, *operands)


def _cumsum(call: Call) -> Result:
    axes, known = call.numbers(1), call.node.inputs[0] in call.scope.closed
    if axes is None or known or call.attribute("exclusive", 0) or call.attribute("reverse", 0):
        return None
    return sum_of_features(call[0], axes[0] % len(call[0].shape))


def _conv(call: Call) -> Result:
    x, weight, bias = call[0], call[1], call.get(2)
    pointwise_kernel = all(n == ONE for n in weight.shape[2:]) and len(weight.shape) == len(x.shape)
    moved = any(call.attribute("pads", ())) or any(n != 1 for n in call.attribute("strides", ()))
    if not pointwise_kernel or moved or call.attribute("group", 1) != 1 or len(x.shape) < 3:
        return None
    places = ascii_letters[: len(x.shape) - 2]
    matrix = reshape(weight, weight.shape[:2])
    result = einsum(f"XY{places},ZY->XZ{places}", x, matrix)
    if bias is None:
        return result
    return pointwise("add", result, reshape(bias, [*bias.shape, *(ONE,) * len(places)]), dtype=x.dtype)


# reductions and normalisers


def _axes(call: Call) -> tuple[int, ...] | None:
    rank = len(call[0].shape)
    axes = call.numbers(1, "axes")
    if axes is None and call.present(1) and call[1].shape != (Size.of(0),):
        return None
    if not axes:
        return () if call.attribute("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(axis % rank for axis in axes)


def _reduced(kind: str, call: Call) -> Result:
    x, axes, keep = call[0], _axes(call), bool(call.attribute("keepdims", 1))
    if axes is None:
        return None
    if kind == "square":
        return sum_(pointwise("mul", x, x), axes, keep)
    if kind == "l2":
        return pointwise("sqrt", sum_(pointwise("mul", x, x), axes, keep))
    if kind == "l1":
        return sum_(pointwise("abs", x), axes, keep)
    if not axes and kind in ("max", "min", "sum", "mean", "logsumexp"):
        return x
    if kind == "sum":
        return sum_(x, axes, keep)
    if kind == "mean":
        return _average(x, axes, keep)
    if kind == "log":
        return pointwise("log", sum_(x, axes, keep))
    return reduce(kind, x, axes, keep)


def _average(x: Prim, axes: Sequence[int], keep: bool) -> Prim:
    count = product(x.shape[axis] for axis in axes)
    if count.static:
        return sum_(x, axes, keep, mean=True)
    number = cast(squeeze(iota(1, start=count), 0), x.dtype or "float32")
    return pointwise("div", sum_(x, axes, keep), number)


def _softmax(log: bool, call: Call) -> Result:
    x = call[0]
    rank = len(x.shape)
    if call.opset >= 13:
        return softmax(x, call.attribute("axis", -1), log)
    axis = call.attribute("axis", 1) % rank
    if axis == rank - 1:
        return softmax(x, axis, log)
    flat = reshape(x, [product(x.shape[:axis]), product(x.shape[axis:])])
    return reshape(softmax(flat, 1, log), x.shape)


_SAME_NAME = {
    "Neg": "neg",
    "Abs": "abs",
    "Sqrt": "sqrt",
    "Reciprocal": "reciprocal",
    "Exp": "exp",
    "Log": "log",
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
    "Relu": "relu",
    "Erf": "erf",
    "Sin": "sin",
    "Cos": "cos",
    "Floor": "floor",
    "Sign": "sign",
    "Softplus": "softplus",
    "Not": "not",
    "IsNaN": "isnan",
    "Add": "add",
    "Sub": "sub",
    "Mul": "mul",
    "And": "and",
    "Or": "or",
    "Xor": "xor",
    "Equal": "eq",
    "Less": "lt",
    "LessOrEqual": "le",
    "Greater": "gt",
    "GreaterOrEqual": "ge",
}

OPERATORS: dict[str, Handler] = {
    **{name: partial(_map, fn) for name, fn in _SAME_NAME.items()},
    "Max": partial(_variadic, "maximum"),
    "Min": partial(_variadic, "minimum"),
    "Sum": partial(_variadic, "add"),
    "Mean": _mean,
    "Div": _div,
    "Pow": _pow,
    "Mod": _mod,
    "Ceil": _ceil,
    "IsInf": _isinf,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Clip": _clip,
    "Identity": _identity,
    "Where": _where,
    "Dropout": _dropout,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "com.microsoft::FusedMatMul": _fused_matmul,
    "Einsum": _einsum,
    "Conv": _conv,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Swish": _swish,
    "CumSum": _cumsum,
    "ReduceSum": partial(_reduced, "sum"),
    "ReduceMean": partial(_reduced, "mean"),
    "ReduceMax": partial(_reduced, "max"),
    "ReduceMin": partial(_reduced, "min"),
    "ReduceLogSumExp": partial(_reduced, "logsumexp"),
    "ReduceLogSum": partial(_reduced, "log"),
    "ReduceSumSquare": partial(_reduced, "square"),
    "ReduceL1": partial(_reduced, "l1"),
    "ReduceL2": partial(_reduced, "l2"),
    "Softmax": partial(_softmax, False),
    "LogSoftmax": partial(_softmax, True),
}
"""Translations by operator name."""
