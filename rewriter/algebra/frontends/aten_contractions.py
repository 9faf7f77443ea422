"""aten operators that sum, and those that normalise: products, reductions, softmax."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from string import ascii_letters

from rewriter.algebra.equation import Equation
from rewriter.algebra.frontends.aten_pointwise import real
from rewriter.algebra.frontends.aten_scope import Call, Handler, Result, dtype_name
from rewriter.algebra.frontends.guards import guarded
from rewriter.algebra.frontends.sums import sum_of_features
from rewriter.algebra.prims import (
    Prim,
    cast,
    constant,
    einsum,
    expand,
    iota,
    linear,
    matmul,
    pointwise,
    reduce,
    reshape,
    softmax,
    sum_,
)
from rewriter.algebra.sizes import ONE, product

__all__ = ["CONTRACTIONS"]


def _matmul(call: Call) -> Result:
    return matmul(call.tensor(0), call.tensor(1))


def _scaled(call: Call, x: Prim, at: int, name: str) -> Prim:
    factor = call.arg(at, name, 1)
    return x if factor == 1 else pointwise("mul", x, call.scalar(factor), dtype=x.dtype)


def _add_product(batch: bool, call: Call) -> Result:
    """``beta * c + alpha * (a @ b)``, summed over the batch for ``addbmm``."""
    c, found = call.tensor(0), matmul(call.tensor(1), call.tensor(2))
    if batch:
        found = sum_(found, (0,))
    found = _scaled(call, found, 4, "alpha")
    if call.arg(3, "beta", 1) == 0:
        return found
    return pointwise("add", found, _scaled(call, c, 3, "beta"), dtype=found.dtype)


def _linear(call: Call) -> Result:
    x, weight, bias = call.tensor(0), call.tensor(1), call.optional(2, "bias")
    if len(weight.shape) == 2:
        return linear(x, weight, bias)
    found = matmul(x, weight)
    return found if bias is None else pointwise("add", found, bias, dtype=x.dtype)


def _outer(call: Call) -> Result:
    return einsum("i,j->ij", call.tensor(0), call.tensor(1))


def _einsum(call: Call) -> Result:
    operands, equation = call.tensors(1), Equation.parse(call.arg(0))
    spec = None if equation is None else equation.explicit([len(x.shape) for x in operands])
    return None if spec is None else einsum(spec, *operands)


def _tensordot(call: Call) -> Result:
    a, b = call.tensor(0), call.tensor(1)
    rows = [axis % len(a.shape) for axis in call.arg(2)]
    columns = [axis % len(b.shape) for axis in call.arg(3)]
    left = ascii_letters[: len(a.shape)]
    right = list(ascii_letters[len(a.shape) : len(a.shape) + len(b.shape)])
    for row, column in zip(rows, columns, strict=True):
        right[column] = left[row]
    output = [c for c in left if c not in right] + [c for c in right if c not in left]
    return einsum(f"{left},{''.join(right)}->{''.join(output)}", a, b)


def _conv(call: Call) -> Result:
    """Only what is a product at every place: kernel 1, stride 1, no padding, one group."""
    x, weight, bias = call.tensor(0), call.tensor(1), call.optional(2, "bias")
    moved = _numbers(call.arg(3, "stride", 1)) - {1} or _numbers(call.arg(4, "padding", 0)) - {0}
    if call.op.startswith("aten::convolution"):
        transposed, extra, groups = (
            call.arg(6, "transposed"),
            call.arg(7, "output_padding"),
            call.arg(8, "groups"),
        )
        moved = moved or transposed or _numbers(extra) - {0}
    else:
        groups = call.arg(6, "groups", 1)
    kernel = weight.shape[2:]
    if moved or groups != 1 or any(n != ONE for n in kernel) or len(x.shape) != len(weight.shape):
        return None
    places = ascii_letters[: len(kernel)]
    found = einsum(f"XY{places},ZY->XZ{places}", x, reshape(weight, weight.shape[:2]))
    if bias is None:
        return found
    return pointwise("add", found, reshape(bias, [*bias.shape, *(ONE,) * len(places)]), dtype=x.dtype)


def _numbers(arg: object) -> set[object]:
    """Return the entries of an argument that is one number for all axes or one each; a word means 0."""
    if isinstance(arg, list | tuple):
        return set(arg)
    return {0 if isinstance(arg, str) else arg}


# reductions


def _axes(call: Call, x: Prim) -> tuple[int, ...]:
    return () if not x.shape else call.axes(1, len(x.shape))


def _sum(call: Call) -> Result:
    whole = call.op.endswith(".default")
    x = real(call, call.tensor(0))
    axes = tuple(range(len(x.shape))) if whole else _axes(call, x)
    return sum_(x, axes, keepdim=not whole and bool(call.arg(2, "keepdim", False)))


def _mean(call: Call) -> Result:
    found, x = _sum(call), call.tensor(0)
    assert isinstance(found, Prim)
    axes = range(len(x.shape)) if call.op.endswith(".default") else _axes(call, x)
    count = product(x.shape[axis] for axis in axes)
    if count.static:
        return pointwise("mul", found, constant(1.0 / int(count), x.dtype), dtype=x.dtype)
    return pointwise("div", found, call.scope.number(count, x.dtype or "float32"), dtype=x.dtype)


def _extreme(fn: str, call: Call) -> Result:
    """``amax`` and ``logsumexp``: over some axes, none meaning all of them."""
    x = call.tensor(0)
    return reduce(fn, x, _axes(call, x), bool(call.arg(2, "keepdim", False)))


def _extreme_of_all(fn: str, call: Call) -> Result:
    x = call.tensor(0)
    return reduce(fn, x, range(len(x.shape)))


def _extreme_and_place(fn: str, call: Call) -> Result:
    x = call.tensor(0)
    if not x.shape:
        return [x, None]
    return [reduce(fn, x, (call.axis(1, len(x.shape)),), bool(call.arg(2, "keepdim", False))), None]


def _junction(fn: str, call: Call) -> Result:
    """``any`` and ``all`` as the maximum and the minimum of truth values."""
    x = call.tensor(0)
    x = x if x.dtype == "bool" else cast(x, "bool")
    if call.op.endswith(".default"):
        return reduce(fn, x, range(len(x.shape)))
    return reduce(fn, x, _axes(call, x), bool(call.arg(2, "keepdim", False)))


def _norm(call: Call) -> Result:
    x, axes = call.tensor(0), call.arg(2, "dim")
    if call.arg(1, "ord", 2) != 2 or "complex" in (x.dtype or ""):
        return None
    places: Sequence[int] = range(len(x.shape)) if axes is None else axes
    return pointwise("sqrt", sum_(pointwise("mul", x, x), places, bool(call.arg(3, "keepdim", False))))


# normalisers


def _softmax(log: bool, call: Call) -> Result:
    x, wanted = call.tensor(0), call.arg(2, "dtype")
    if not x.shape:
        return None
    if wanted is not None and not isinstance(wanted, bool) and dtype_name(wanted) != x.dtype:
        x = cast(x, dtype_name(wanted))
    elif wanted is True and call.dtype != x.dtype:  # half_to_float
        x = cast(x, call.dtype or "float32")
    return softmax(x, call.axis(1, len(x.shape)), log)


def _safe_softmax(call: Call) -> Result:
    found = _softmax(False, call)
    return guarded(found) if isinstance(found, Prim) else None


def _cumsum(call: Call) -> Result:
    """Only of what is one number everywhere, and of products of features."""
    x = call.tensor(0)
    if not x.shape:
        return None
    axis = call.axis(1, len(x.shape))
    found = call.scope.progressions.of(x)
    number = None if found is None else found.number
    if number is None:
        plain = call.dtype == x.dtype and call.name not in call.scope.closed
        return sum_of_features(x, axis) if plain else None
    sums = iota(x.shape[axis], start=number, step=number, dtype=call.dtype or "int64")
    return expand(reshape(sums, [*sums.shape, *(ONE,) * (len(x.shape) - 1 - axis)]), x.shape)


CONTRACTIONS: dict[str, Handler] = {
    **dict.fromkeys("mm matmul bmm mv dot".split(), _matmul),
    **dict.fromkeys("addmm baddbmm addmv".split(), partial(_add_product, False)),
    "addbmm": partial(_add_product, True),
    "linear": _linear,
    "outer": _outer,
    "ger": _outer,
    "einsum": _einsum,
    "tensordot": _tensordot,
    **dict.fromkeys("conv1d conv2d conv3d convolution".split(), _conv),
    "sum.default": _sum,
    "sum.dim_IntList": _sum,
    "mean.default": _mean,
    "mean.dim": _mean,
    "amax": partial(_extreme, "max"),
    "amin": partial(_extreme, "min"),
    "logsumexp": partial(_extreme, "logsumexp"),
    "max.default": partial(_extreme_of_all, "max"),
    "min.default": partial(_extreme_of_all, "min"),
    "max.dim": partial(_extreme_and_place, "max"),
    "min.dim": partial(_extreme_and_place, "min"),
    "any": partial(_junction, "max"),
    "all": partial(_junction, "min"),
    "linalg_vector_norm": _norm,
    "softmax": partial(_softmax, False),
    "_softmax": partial(_softmax, False),
    "special_softmax": partial(_softmax, False),
    "log_softmax": partial(_softmax, True),
    "_log_softmax": partial(_softmax, True),
    "_safe_softmax": _safe_softmax,
    "cumsum": _cumsum,
}
"""Translations by operator name, all overloads, or one where the name has a dot."""
