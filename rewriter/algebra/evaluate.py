"""Numbers for primitive forms: the reference that recognition and rewriting are checked against.

Everything floating is computed in one dtype, float64 unless asked otherwise, and casts between
floating dtypes are ignored: the result is the real-valued function that the graph stands for, not
what some precision makes of it. Integers are what their dtype holds: they wrap around, and positions
that half precision cannot tell apart are equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from rewriter.algebra.dimensions import Dimensions, EvaluationError
from rewriter.algebra.prims import (
    Concat,
    Constant,
    Einsum,
    Expand,
    Gather,
    Iota,
    Leaf,
    Map,
    Permute,
    Prim,
    Reduce,
    Reshape,
    Slice,
    Softmax,
)

__all__ = ["EvaluationError", "apply_pointwise", "evaluate"]

Array = np.ndarray[Any, Any]


def evaluate(
    outputs: Sequence[Prim],
    values: Mapping[str, Array],
    sizes: Mapping[str, int] = {},
    dtype: Any = np.float64,
    shared: MutableMapping[Prim, Array] | None = None,
) -> list[Array]:
    """Compute primitive forms with numpy.

    Parameters
    ----------
    outputs
        What to compute.
    values
        Tensors by the name of the native value that holds them. A form whose ``value`` is among them
        is taken from there and not looked into. Floats (bfloat16 and float8 too) are converted to
        ``dtype``, integers to int64.
    sizes
        Dimensions by symbol. Those that the shapes of ``values`` determine need not be given.
    dtype
        What floats are computed in.
    shared
        Results of earlier calls with the same ``values``, ``sizes`` and ``dtype``: read, and filled.

    Returns
    -------
    list of np.ndarray
        One array per output: ``dtype``, int64 or bool. They may share memory: do not write to them.

    Raises
    ------
    EvaluationError
        If a leaf is not in ``values``, or a size is unknown or contradicted by a shape.
    """
    done: MutableMapping[Prim, Array] = {} if shared is None else shared
    order = _order(outputs, values, done)
    given = [p for p in order if p.value is not None and p.value in values]
    bound = Dimensions(sizes)
    bound.match([(p.value or "", p.shape, np.shape(values[p.value or ""])) for p in given])
    taken = set(given)
    pending: dict[Prim, int] = dict.fromkeys(outputs, 1)
    for prim in order:
        for operand in () if prim in taken else prim.inputs:
            pending[operand] = pending.get(operand, 0) + 1
    real = np.dtype(dtype)
    with np.errstate(all="ignore"):
        for prim in order:
            if prim in taken:
                done[prim] = _coerce(np.asarray(values[prim.value or ""]), real)
                continue
            done[prim] = _compute(prim, [done[x] for x in prim.inputs], bound, real)
            for operand in prim.inputs:
                pending[operand] -= 1
                if shared is None and not pending[operand]:
                    done.pop(operand, None)
    return [done[prim] for prim in outputs]


def apply_pointwise(fn: str, operands: Sequence[Array], dtype: str | None = None) -> Array:
    """Return a `rewriter.algebra.prims.POINTWISE` function of numpy arrays; ``dtype`` is the result's."""
    with np.errstate(all="ignore"):
        if fn == "cast":
            return _cast(operands[0], dtype, np.dtype(np.float64))
        return _held(np.asarray(_POINTWISE[fn](*operands)), dtype)


def bind(forms: Iterable[Prim], values: Mapping[str, Array]) -> dict[str, int]:
    """Return the dimensions that arrays determine.

    Parameters
    ----------
    forms
        Forms of native values; those without an array in ``values`` are ignored.
    values
        Arrays by value name. Their shapes are equations for the sizes of the forms.

    Raises
    ------
    EvaluationError
        If two shapes contradict each other, or a shape a fixed size.
    """
    sizes = Dimensions({})
    sizes.match(
        [(p.value, p.shape, np.shape(values[p.value])) for p in forms if p.value in values and p.value]
    )
    return sizes.bound


def _order(outputs: Sequence[Prim], values: Mapping[str, Array], done: Mapping[Prim, Array]) -> list[Prim]:
    """Return what has to be computed, operands first."""
    order: list[Prim] = []
    seen: set[Prim] = set()
    stack: list[tuple[Prim, bool]] = [(p, False) for p in reversed(outputs)]
    while stack:
        prim, ready = stack.pop()
        if ready:
            order.append(prim)
        elif prim not in seen and prim not in done:
            seen.add(prim)
            stack.append((prim, True))
            if prim.value is None or prim.value not in values:
                stack.extend((x, False) for x in reversed(prim.inputs))
    return order


def _compute(prim: Prim, xs: list[Array], sizes: Dimensions, real: np.dtype[Any]) -> Array:
    match prim.form:
        case Map(fn):
            return _map(prim, fn, xs, real)
        case Einsum(operands, output):
            return _einsum(operands, output, xs)
        case Softmax(axis, log):
            return _softmax(xs[0], axis, log)
        case Reduce(fn, axes):
            return _REDUCE[fn](xs[0], axes)
        case Constant(load):
            array = _coerce(np.asarray(load()), real)
            return _cast(array, prim.dtype, real) if _is_float(prim.dtype) else array
        case Leaf(why):
            raise EvaluationError(
                f"{prim.value or 'a step inside an operator'} ({why}) is not computed from anything; "
                "give its array in `values`"
            )
        case _:
            return _view(prim, xs, sizes, real)


def _map(prim: Prim, fn: str, xs: list[Array], real: np.dtype[Any]) -> Array:
    if fn == "cast":
        return _cast(xs[0], prim.dtype, real)
    if fn == "pow" and _is_float(prim.dtype):
        return np.asarray(np.power(xs[0].astype(real), xs[1]))
    return _held(np.asarray(_POINTWISE[fn](*xs)), prim.dtype)


def _view(prim: Prim, xs: list[Array], sizes: Dimensions, real: np.dtype[Any]) -> Array:
    match prim.form:
        case Reshape():
            return _reshape(prim, xs[0], sizes)
        case Permute(order):
            return np.transpose(xs[0], order)
        case Expand():
            return _expand(prim, xs[0], sizes)
        case Slice(axis, start, step):
            return _slice(prim, xs[0], axis, sizes.require(start, prim), step, sizes)
        case Concat(axis):
            return np.concatenate(xs, axis)
        case Gather(axis):
            return np.take(xs[0], xs[1], axis)
        case Iota(start, step):
            count = np.arange(sizes.require(prim.shape[0], prim), dtype=np.int64)
            array = sizes.require(start, prim) + sizes.require(step, prim) * count
            return _cast(array, prim.dtype, real)
        case _:
            raise TypeError(f"{prim!r} has a form that cannot be evaluated")


def _reshape(prim: Prim, x: Array, sizes: Dimensions) -> Array:
    shape = [sizes.number(n) for n in prim.shape]
    if shape.count(None) > 1:
        for n in prim.shape:
            sizes.require(n, prim)
    return np.reshape(x, [-1 if n is None else n for n in shape])


def _slice(prim: Prim, x: Array, axis: int, start: int, step: int, sizes: Dimensions) -> Array:
    count = sizes.require(prim.shape[axis], prim)
    last = start + step * (count - 1)
    if count < 0 or (count and not (0 <= start < x.shape[axis] and 0 <= last < x.shape[axis])):
        raise EvaluationError(
            f"{prim!r} reads entries {start} to {last} of axis {axis}, which has {x.shape[axis]}; "
            "these sizes are outside what the graph was made for"
        )
    stop = start + step * count
    index = slice(start, None if stop < 0 else stop, step) if count else slice(0, 0)
    return x[(slice(None),) * axis + (index,)]


def _expand(prim: Prim, x: Array, sizes: Dimensions) -> Array:
    old = (*(1,) * (len(prim.shape) - x.ndim), *x.shape)
    # a long axis stays as long as it is, whatever its size is called
    new = [
        n if n != 1 and sizes.number(size) is None else sizes.require(size, prim)
        for n, size in zip(old, prim.shape, strict=True)
    ]
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(new)))


# dtypes


def _is_float(dtype: str | None) -> bool:
    return dtype is not None and dtype.startswith(("float", "bfloat"))


def _coerce(array: Array, real: np.dtype[Any]) -> Array:
    kind: str = array.dtype.kind
    if kind == "f" or _is_float(array.dtype.name):  # ml_dtypes' floats are of kind V
        return array.astype(real, copy=False)
    if kind in "iu" or array.dtype.name in ("int4", "uint4", "int2", "uint2"):
        return array.astype(np.int64, copy=False)
    return array


def _cast(x: Array, dtype: str | None, real: np.dtype[Any]) -> Array:
    if _is_float(dtype):
        if x.dtype.kind == "i" and dtype in ("float16", "bfloat16"):
            x = x.astype(_half(dtype))
        return x if x.dtype.kind == "c" else x.astype(real, copy=False)
    if dtype == "bool":
        return np.not_equal(x, 0)
    if dtype is None or not dtype.startswith(("int", "uint")):
        return x
    return _held(x.astype(np.int64, copy=False), dtype)


def _half(dtype: str | None) -> np.dtype[Any]:
    if dtype == "float16":
        return np.dtype(np.float16)
    import ml_dtypes

    found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return found


def _held(x: Array, dtype: str | None) -> Array:
    """Return integers as their dtype holds them: what does not fit wraps around."""
    if x.dtype.kind == "i" and dtype in ("int8", "int16", "int32", "uint8", "uint16", "uint32"):
        return x.astype(dtype).astype(np.int64)
    return x


# pointwise functions and reductions


_ERF = np.vectorize(math.erf, otypes=[np.float64])


def _erf(x: Array) -> Array:
    return np.asarray(_ERF(x)).astype(np.result_type(x, np.float16))


_POINTWISE: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.true_divide,
    "neg": np.negative,
    "abs": np.abs,
    "sign": np.sign,
    "exp": np.exp,
    "exp2": np.exp2,
    "log": np.log,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "reciprocal": lambda x: np.true_divide(1, x),
    "pow": np.power,
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "erf": _erf,
    "sin": np.sin,
    "cos": np.cos,
    "floor": np.floor,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "where": np.where,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "xor": np.logical_xor,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "isnan": np.isnan,
    "isinf": np.isinf,
    "mod": np.mod,
    "floordiv": np.floor_divide,
    "identity": lambda x: x,
    "softplus": lambda x: np.logaddexp(0, x),
}


def _extreme(x: Array, axes: tuple[int, ...], most: bool, keep: bool = False) -> Array:
    if x.size:
        return np.asarray((np.max if most else np.min)(x, axis=axes, keepdims=keep))
    sign = -1 if most else 1
    info = np.iinfo(x.dtype) if x.dtype.kind == "i" else None
    identity = sign * np.inf if info is None else info.min if most else info.max
    shape = np.sum(x, axis=axes, keepdims=keep).shape
    return np.full(shape, not most if x.dtype.kind == "b" else identity, x.dtype)


def _logsumexp(x: Array, axes: tuple[int, ...]) -> Array:
    top = _extreme(x, axes, most=True, keep=True)
    top = np.where(np.isfinite(top), top, 0)
    return np.asarray(np.log(np.sum(np.exp(x - top), axis=axes)) + np.squeeze(top, axes))


_REDUCE: dict[str, Callable[[Array, tuple[int, ...]], Array]] = {
    "max": partial(_extreme, most=True),
    "min": partial(_extreme, most=False),
    "logsumexp": _logsumexp,
}


def _softmax(x: Array, axis: int, log: bool) -> Array:
    if not x.shape[axis]:
        return x
    shifted = x - np.max(x, axis=axis, keepdims=True)
    weights = np.exp(shifted)
    total = np.sum(weights, axis=axis, keepdims=True)
    return np.asarray(shifted - np.log(total) if log else weights / total)


# sums of products

Labels = tuple[int, ...]


def _einsum(operands: tuple[Labels, ...], output: Labels, xs: list[Array]) -> Array:
    if any(len(set(part)) != len(part) for part in operands):
        return _general(list(operands), output, xs)
    parts, xs = _drop_units(operands, xs)
    missing = [label for label in output if not any(label in part for part in parts)]
    if len(xs) == 1 and not missing:
        return _sum(parts[0], output, xs[0])
    if len(xs) == 2 and not missing:
        return _product(parts[0], parts[1], output, xs[0], xs[1])
    return _general(parts, output, xs)


def _drop_units(operands: tuple[Labels, ...], xs: list[Array]) -> tuple[list[Labels], list[Array]]:
    """Remove axes of size 1 that broadcast against a longer axis of another operand."""
    longest: dict[int, int] = {}
    for part, x in zip(operands, xs, strict=True):
        for label, n in zip(part, x.shape, strict=True):
            longest[label] = n if longest.get(label, 1) == 1 else longest[label]
    parts, arrays = [], []
    for part, x in zip(operands, xs, strict=True):
        units = tuple(k for k, label in enumerate(part) if x.shape[k] == 1 != longest[label])
        parts.append(tuple(label for k, label in enumerate(part) if k not in units))
        arrays.append(np.squeeze(x, units) if units else x)
    return parts, arrays


def _sum(part: Labels, output: Labels, x: Array) -> Array:
    summed = tuple(k for k, label in enumerate(part) if label not in output)
    kept = [label for label in part if label in output]
    total = np.sum(x, axis=summed) if summed else x
    return np.transpose(total, [kept.index(label) for label in output])


def _product(left: Labels, right: Labels, output: Labels, a: Array, b: Array) -> Array:
    """Two operands as one batched matrix product, which numpy gives to BLAS."""
    own_left = [label for label in left if label in right or label in output]
    own_right = [label for label in right if label in left or label in output]
    a, b = _sum(left, tuple(own_left), a), _sum(right, tuple(own_right), b)
    batch = [label for label in own_left if label in own_right and label in output]
    inner = [label for label in own_left if label in own_right and label not in output]
    rows = [label for label in own_left if label not in own_right]
    columns = [label for label in own_right if label not in own_left]
    a = np.transpose(a, [own_left.index(label) for label in (*batch, *rows, *inner)])
    b = np.transpose(b, [own_right.index(label) for label in (*batch, *inner, *columns)])
    m, n = len(batch), len(batch) + len(rows)
    outer = a.shape[:m]
    k = m + len(inner)
    matrix_a = a.reshape((*outer, math.prod(a.shape[m:n]), math.prod(a.shape[n:])))
    matrix_b = b.reshape((*outer, math.prod(b.shape[m:k]), math.prod(b.shape[k:])))
    if not inner or (not rows and not columns):  # nothing for a matrix product to do
        product = (np.swapaxes(matrix_a, -1, -2) * matrix_b).sum(-2) if inner else matrix_a * matrix_b
    else:
        product = np.matmul(matrix_a, matrix_b)
    result = product.reshape(outer + a.shape[m:n] + b.shape[k:])
    written = [*batch, *rows, *columns]
    return np.transpose(result, [written.index(label) for label in output])


def _general(parts: list[Labels], output: Labels, xs: list[Array]) -> Array:
    number = {label: k for k, label in enumerate(dict.fromkeys(label for part in parts for label in part))}
    arguments: list[Any] = []
    for part, x in zip(parts, xs, strict=True):
        arguments += [x, [number[label] for label in part]]
    return np.asarray(np.einsum(*arguments, [number[label] for label in output], optimize=len(xs) > 2))
