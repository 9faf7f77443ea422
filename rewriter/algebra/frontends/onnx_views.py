"""ONNX operators that move entries: reshapes, transposes, slices, concatenations, gathers, sources."""

from __future__ import annotations

import math

import numpy as np

from rewriter.algebra.frontends.onnx_scope import Call, Handler, Known, Result, integer_tensor
from rewriter.algebra.frontends.onnx_shapes import quotient, slice_range
from rewriter.algebra.prims import (
    Prim,
    concat,
    constant,
    expand,
    gather,
    iota,
    permute,
    pointwise,
    reshape,
    select,
    slice_,
    squeeze,
    unsqueeze,
)
from rewriter.algebra.sizes import ONE, ZERO, Size, product

__all__ = ["VIEWS"]


def _transpose(call: Call) -> Result:
    x = call[0]
    order = call.attribute("perm")
    return permute(x, range(len(x.shape))[::-1] if order is None else order)


def _reshape(call: Call) -> Result:
    x, target = call[0], call.integers(1)
    if call.attribute("shape") is not None:
        target = Known(tuple(Size.of(n) for n in call.attribute("shape")))
    declared = call.declared()
    if target is None:
        length = call[1].shape[0].known() if declared is None else len(declared)
        target = Known((None,) * length) if length is not None else None
    if target is None:
        return None
    rank = len(target.values)
    sizes: list[Size | None] = []
    for axis, size in enumerate(target.values):
        if size == ZERO and not call.attribute("allowzero", 0):
            sizes.append(x.shape[axis])
        else:
            sizes.append(None if size is None or (size.static and int(size) < 0) else size)
    missing = [axis for axis, size in enumerate(sizes) if size is None]
    for axis in missing:
        stated = call.dim(axis, rank)
        if len(missing) == 1:
            total, known = product(x.shape), product(size for size in sizes if size is not None)
            exact = total.divide(known)
            stated = exact if exact is not None else stated if stated.static else quotient(total, known)
        sizes[axis] = stated
    return reshape(x, [size for size in sizes if size is not None])


def _flatten(call: Call) -> Result:
    x = call[0]
    axis = call.attribute("axis", 1)
    axis += len(x.shape) if axis < 0 else 0
    return reshape(x, [product(x.shape[:axis]), product(x.shape[axis:])])


def _unsqueeze(call: Call) -> Result:
    x, axes = call[0], call.numbers(1, "axes")
    if axes is None:
        return None
    rank = len(x.shape) + len(axes)
    new = {axis % rank for axis in axes}
    old = iter(x.shape)
    return reshape(x, [ONE if axis in new else next(old) for axis in range(rank)])


def _squeeze(call: Call) -> Result:
    x, axes = call[0], call.numbers(1, "axes")
    if axes is None:
        declared = call.declared()
        kept = [size for size in x.shape if size != ONE]
        if call.present(1) or not (
            all(size.static for size in kept) or (declared and len(declared) == len(kept))
        ):
            return None
        return reshape(x, kept)
    dropped = {axis % len(x.shape) for axis in axes}
    return reshape(x, [size for axis, size in enumerate(x.shape) if axis not in dropped])


def _expand(call: Call) -> Result:
    x, target = call[0], _target(call, 1)
    return None if target is None else expand(x, target)


def _target(call: Call, at: int) -> list[Size] | None:
    """Return the shape in an operand, unknown entries as the graph states them."""
    known, declared = call.integers(at), call.declared()
    if known is None:
        return None if declared is None else list(declared)
    rank = len(known.values)
    return [call.dim(axis, rank) if size is None else size for axis, size in enumerate(known.values)]


def _tile(call: Call) -> Result:
    x, repeats = call[0], call.integers(1)
    if repeats is None or None in repeats.values or len(repeats.values) != len(x.shape):
        return None
    pairs = [(ONE if n is None else n, size) for n, size in zip(repeats.values, x.shape, strict=True)]
    if all(n == ONE for n, _ in pairs):
        return x
    split = reshape(x, [m for n, size in pairs for m in ((size,) if n == ONE else (ONE, size))])
    repeated = expand(split, [m for n, size in pairs for m in ((size,) if n == ONE else (n, size))])
    return reshape(repeated, [n * size for n, size in pairs])


def _concat(call: Call) -> Result:
    parts = [x for x in call.inputs if x is not None]
    return parts[0] if len(parts) == 1 else concat(parts, call.attribute("axis", 1))


def _pad(call: Call) -> Result:
    x, axes, fill = call[0], call.numbers(3), call.get(2)
    if call.attribute("mode", "constant") != "constant" or (axes is None and call.present(3)):
        return None
    stated = call.attribute("pads")
    pads = call.integers(1) if stated is None else Known(tuple(Size.of(n) for n in stated))
    places = range(len(x.shape)) if axes is None else axes
    if pads is None or len(pads.values) != 2 * len(places):
        return None
    if fill is None:
        fill = constant(call.attribute("value", False if x.dtype == "bool" else 0.0), x.dtype)
    for k, axis in enumerate(places):
        first, last = pads.values[k], pads.values[k + len(places)]
        if first is None or last is None or not _one_sign(first) or not _one_sign(last):
            return None
        x = _padded(x, axis % len(x.shape), first, last, reshape(fill, ()))
    return x


def _one_sign(size: Size) -> bool:
    return size.at_least(0) or (-size).at_least(0)


def _padded(x: Prim, axis: int, first: Size, last: Size, fill: Prim) -> Prim:
    """Return ``x`` with entries added at the ends of an axis, or cut off where an amount is negative."""
    start, end = (ZERO if n.at_least(0) else -n for n in (first, last))
    if start != ZERO or end != ZERO:
        x = slice_(x, axis, start, x.shape[axis] - start - end)
    added = [
        expand(fill, [*x.shape[:axis], n, *x.shape[axis + 1 :]]) if n != ZERO and n.at_least(0) else None
        for n in (first, last)
    ]
    parts = [part for part in (added[0], x, added[1]) if part is not None]
    return x if len(parts) == 1 else concat(parts, axis)


def _split(call: Call) -> Result:
    x, axis, count = call[0], call.attribute("axis", 0) % len(call[0].shape), len(call.outputs)
    total = x.shape[axis]
    given = call.numbers(1, "split")
    if given is not None:
        sizes = [Size.of(n) for n in given]
    elif call.present(1):
        known = call.integers(1)
        if known is None or None in known.values:
            return None
        sizes = [size for size in known.values if size is not None]
    else:
        chunk = quotient(total + (count - 1), Size.of(count)) if call.attribute("num_outputs") else None
        chunk = quotient(total, Size.of(count)) if chunk is None else chunk
        sizes = [chunk] * (count - 1) + [total - chunk * (count - 1)]
    parts, start = [], ZERO
    for size in sizes:
        parts.append(slice_(x, axis, start, size))
        start += size
    return parts


def _slice(call: Call) -> Result:
    x = call[0]
    if call.attribute("starts") is not None:
        starts = Known(tuple(Size.of(n) for n in call.attribute("starts")))
        ends = Known(tuple(Size.of(n) for n in call.attribute("ends")))
        axes, steps = call.attribute("axes"), None
    else:
        known_starts, known_ends = call.integers(1), call.integers(2)
        axes, steps = call.numbers(3), call.numbers(4)
        if known_starts is None or known_ends is None:
            return None
        if (axes is None and call.present(3)) or (steps is None and call.present(4)):
            return None
        starts, ends = known_starts, known_ends
    for k, (start, end) in enumerate(zip(starts.values, ends.values, strict=True)):
        axis = (k if axes is None else axes[k]) % len(x.shape)
        step = 1 if steps is None else steps[k]
        if start is None or end is None or not step:
            return None
        found = slice_range(x.shape[axis], start, end, step)
        if found is None:
            return None
        first, count = found
        if first != ZERO or count != x.shape[axis] or step != 1:
            x = slice_(x, axis, first, count, step)
    return x


def _gather(call: Call) -> Result:
    data, indices, axis = call[0], call[1], call.attribute("axis", 0) % len(call[0].shape)
    size = data.shape[axis]
    known = call.integers(1)
    if known is not None and len(known.values) == 1 and (at := known.values[0]) is not None:
        at = size + at if (-at).at_least(1) else at
        return select(data, axis, at) if known.scalar else slice_(data, axis, at, 1)
    places = call.array(1)
    if places is None:
        return gather(data, indices, axis)
    if (places < 0).any():
        if not size.static:
            return gather(data, pointwise("add", indices, _wrap(places, size), dtype=indices.dtype), axis)
        places = np.where(places < 0, places + int(size), places)
        indices = constant(places, indices.dtype)
    if places.ndim == 1 and len(places) > 1:
        strides = np.diff(places)
        if strides[0] and (strides == strides[0]).all():
            return slice_(data, axis, int(places[0]), len(places), int(strides[0]))
    return gather(data, indices, axis)


def _wrap(places: np.ndarray, size: Size) -> Prim:
    """Return what to add to indices so that none is negative."""
    return pointwise("mul", constant((places < 0).astype(np.int64)), squeeze(iota(1, start=size), 0))


def _shape(call: Call) -> Result:
    start, end = call.attribute("start", 0), call.attribute("end")
    return integer_tensor(Known(call[0].shape[slice(start, end)]), "int64")


def _constant_of_shape(call: Call) -> Result:
    fill = call.attribute("value")
    value = np.zeros(1, np.float32) if fill is None else np.asarray(fill.numpy())
    target = _target(call, 0)
    scalar = constant(value.reshape(-1)[0], value.dtype.name)
    return None if target is None else expand(scalar, target) if target else scalar


def _constant(call: Call) -> Result:
    tensor = call.attribute("value")
    if tensor is not None:
        array = np.asarray(tensor.numpy())
        return constant(array, array.dtype.name)
    for name, dtype in (("value_float", "float32"), ("value_int", "int64")):
        for attribute in (name, name + "s"):
            if (value := call.attribute(attribute)) is not None:
                return constant(np.asarray(value, dtype=dtype), dtype)
    return None


def _range(call: Call) -> Result:
    dtype = call[0].dtype or "int64"
    exact = [_whole(call, at) for at in range(3)]
    start, limit, step = exact
    if start is None or step is None or not step.static or not int(step):
        return None
    if limit is None:
        count = call.dim(0, 1)
    else:
        forward = int(step) > 0
        span = limit - start if forward else start - limit
        stride = abs(int(step))
        count = (
            Size.of(max(0, math.ceil(int(span) / stride)))
            if span.static
            else quotient(span + (stride - 1), Size.of(stride))
        )
    return iota(count, start, step, dtype)


def _whole(call: Call, at: int) -> Size | None:
    known = call.integers(at)
    if known is not None and len(known.values) == 1:
        return known.values[0]
    array = call.array(at)
    return (
        Size.of(int(array)) if array is not None and array.size == 1 and float(array).is_integer() else None
    )


def _trilu(call: Call) -> Result:
    x = call[0]
    shift = call.numbers(1) if call.present(1) else [0]
    if not shift or len(x.shape) < 2:
        return None
    row = unsqueeze(iota(x.shape[-2], start=shift[0]), 1)
    kept = pointwise("ge" if call.attribute("upper", 1) else "le", iota(x.shape[-1]), row)
    return pointwise(
        "where", kept, x, constant(np.zeros((), bool if x.dtype == "bool" else np.float64), x.dtype)
    )


VIEWS: dict[str, Handler] = {
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Expand": _expand,
    "Tile": _tile,
    "Concat": _concat,
    "Pad": _pad,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Shape": _shape,
    "ConstantOfShape": _constant_of_shape,
    "Constant": _constant,
    "Range": _range,
    "Trilu": _trilu,
}
"""Translations by operator name."""
