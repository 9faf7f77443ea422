"""aten operators that move entries: views, slices, concatenation, padding, repetition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewriter.algebra.frontends.aten_pointwise import recast
from rewriter.algebra.frontends.aten_scope import Call, Handler, Result, is_node
from rewriter.algebra.prims import (
    Prim,
    concat,
    expand,
    permute,
    pointwise,
    reshape,
    select,
    slice_,
    swap,
    unsqueeze,
)
from rewriter.algebra.sizes import ONE, ZERO, Size, product

__all__ = ["VIEWS", "padded"]

FAR = 1 << 62
"""Ends of slices at least this large mean "to the end"."""


def _reshape(call: Call) -> Result:
    return reshape(call.tensor(0), call.shape)


def _expand(call: Call) -> Result:
    return expand(call.tensor(0), call.shape)


def _permute(call: Call) -> Result:
    return permute(call.tensor(0), call.arg(1, "dims"))


def _transpose(call: Call) -> Result:
    x = call.tensor(0)
    rank = len(x.shape)
    return swap(x, call.axis(1, rank), call.arg(2) % rank) if rank else x


def _matrix_transpose(call: Call) -> Result:
    x = call.tensor(0)
    if "complex" in (x.dtype or "") and "adjoint" in call.op:
        return None
    return swap(x, -2, -1) if len(x.shape) > 1 else x


def _all_axes_reversed(call: Call) -> Result:
    x = call.tensor(0)
    return permute(x, range(len(x.shape) - 1, -1, -1)) if x.shape else x


def _move_axes(call: Call) -> Result:
    x = call.tensor(0)
    rank = len(x.shape)
    old, new = ([n % rank for n in ([arg] if isinstance(arg, int) else arg)] for arg in call.args[1:3])
    order: list[int] = [-1] * rank
    for source, place in zip(old, new, strict=True):
        order[place] = source
    others = (axis for axis in range(rank) if axis not in old)
    return permute(x, [next(others) if source < 0 else source for source in order])


# slices


def _select(call: Call) -> Result:
    x = call.tensor(0)
    axis = call.axis(1, len(x.shape))
    return select(x, axis, _inside(call.size(call.arg(2, "index")), x.shape[axis]))


def _inside(at: Size, n: Size) -> Size:
    """Return a place counted from the start of an axis."""
    return n + at if (-at).at_least(1) else at


def _slice(call: Call) -> Result:
    x = call.tensor(0)
    axis, step = call.axis(1, len(x.shape)), call.arg(4, "step", 1)
    n, count = x.shape[axis], call.shape[axis]
    first, last = call.arg(2, "start"), call.arg(3, "end")
    if count == n and step == 1:
        return x
    if isinstance(step, int) and step == 1 and (last is None or (isinstance(last, int) and last >= FAR)):
        return slice_(x, axis, n - count, count)
    start = ZERO if first is None else call.size(first)
    if n.static and start.static:
        start = Size.of(slice(int(start), None).indices(int(n))[0])
    return slice_(x, axis, _inside(start, n), count, int(call.size(step)))


def _narrow(call: Call) -> Result:
    x = call.tensor(0)
    axis = call.axis(1, len(x.shape))
    return slice_(x, axis, _inside(call.size(call.arg(2, "start")), x.shape[axis]), call.shape[axis])


def _pieces(x: Prim, axis: int, sizes: Sequence[Size]) -> list[Prim | None]:
    found: list[Prim | None] = []
    start = ZERO
    for size in sizes:
        found.append(slice_(x, axis, start, size))
        start = start + size
    return found


def _split(call: Call) -> Result:
    x, given = call.tensor(0), call.arg(1)
    axis = call.axis(2, len(x.shape))
    if isinstance(given, list | tuple):
        return _pieces(x, axis, [call.size(n) for n in given])
    return _equal_pieces(x, axis, call.size(given), call)


def _equal_pieces(x: Prim, axis: int, size: Size, call: Call) -> list[Prim | None]:
    """Return pieces of ``size``, the last one with what is left."""
    count = len(call.node.native.meta["val"])
    return _pieces(x, axis, [*(size,) * (count - 1), x.shape[axis] - size * (count - 1)])


def _chunk(call: Call) -> Result:
    x, count = call.tensor(0), call.arg(1)
    axis = call.axis(2, len(x.shape))
    n = x.shape[axis]
    size = Size.of(-(-int(n) // count)) if n.static else n.divide(count)
    return None if size is None else _equal_pieces(x, axis, size, call)


def _unbind(call: Call) -> Result:
    x = call.tensor(0)
    axis = call.axis(1, len(x.shape))
    return [select(x, axis, at) for at in range(int(x.shape[axis]))]


def _flip(call: Call) -> Result:
    x = call.tensor(0)
    for axis in call.arg(1):
        n = x.shape[axis]
        x = slice_(x, axis, n - 1, n, -1)
    return x


def _slice_scatter(call: Call) -> Result:
    x, source = call.tensor(0), call.tensor(1)
    axis = call.axis(2, len(x.shape))
    if call.arg(5, "step", 1) != 1:
        return None
    first = call.arg(3, "start")
    return _put(x, source, axis, ZERO if first is None else call.size(first))


def _select_scatter(call: Call) -> Result:
    x, source = call.tensor(0), call.tensor(1)
    axis = call.axis(2, len(x.shape))
    return _put(x, unsqueeze(source, axis), axis, call.size(call.arg(3)))


def _put(x: Prim, source: Prim, axis: int, start: Size) -> Prim | None:
    """Return ``x`` with a range of an axis replaced."""
    n, width = x.shape[axis], source.shape[axis]
    start = _inside(start, n)
    end = start + width
    if not (start.at_least(0) and n.at_least(end)):
        return None
    parts = [slice_(x, axis, ZERO, start), source, slice_(x, axis, end, n - end)]
    kept = [part for part in parts if part.shape[axis] != ZERO]
    return concat(kept, axis) if len(kept) > 1 else kept[0]


# concatenation and repetition


def _cat(call: Call) -> Result:
    parts = call.tensors(0)
    empty = (ZERO,)
    parts = [x for x in parts if x.shape != empty] or parts[:1]
    axis = call.axis(1, len(parts[0].shape))
    return concat(parts, axis) if len(parts) > 1 else parts[0]


def _stack(call: Call) -> Result:
    parts = call.tensors(0)
    axis = call.axis(1, len(parts[0].shape) + 1)
    return concat([unsqueeze(x, axis) for x in parts], axis)


def _diff(call: Call) -> Result:
    x, before, after = call.tensor(0), call.optional(3, "prepend"), call.optional(4, "append")
    axis = call.axis(2, len(x.shape), default=-1)
    if call.arg(1, "n", 1) != 1:
        return None
    parts = [part for part in (before, x, after) if part is not None]
    whole = concat(parts, axis) if len(parts) > 1 else x
    count = whole.shape[axis] - 1
    fn = "xor" if x.dtype == "bool" else "sub"
    return pointwise(fn, slice_(whole, axis, 1, count), slice_(whole, axis, 0, count))


def _roll(call: Call) -> Result:
    x, shifts, axes = call.tensor(0), _listed(call.arg(1)), _listed(call.arg(2, "dims", ()))
    if len(shifts) != len(axes):
        return None
    for shift, axis in zip(map(call.size, shifts), axes, strict=True):
        n = x.shape[axis]
        if n.static and shift.static:
            shift = Size.of(int(shift) % max(int(n), 1))
        start = _inside(-shift, n)
        if start in (ZERO, n):
            continue
        if not (start.at_least(0) and n.at_least(start)):
            return None
        x = concat([slice_(x, axis, start, n - start), slice_(x, axis, ZERO, start)], axis % len(x.shape))
    return x


def _listed(arg: Any) -> Sequence[Any]:
    return arg if isinstance(arg, list | tuple) else (arg,)


def _pad(call: Call) -> Result:
    """With a constant, or cutting entries off where an amount is negative."""
    x, amounts = call.tensor(0), [call.size(n) for n in call.arg(1)]
    value_at = 2
    if call.op.startswith("aten::pad"):
        if call.arg(2, "mode", "constant") != "constant":
            return None
        value_at = 3
    value = call.arg(value_at, "value", 0)
    fill = call.of(value) if is_node(value) else call.scalar(value or 0)
    fill = recast(call, fill) or fill
    for k in range(len(amounts) // 2):
        axis = len(x.shape) - 1 - k
        wider = padded(x, axis, amounts[2 * k], amounts[2 * k + 1], fill)
        if wider is None:
            return None
        x = wider
    return x


def padded(x: Prim, axis: int, first: Size, last: Size, fill: Prim) -> Prim | None:
    """Return a tensor with ``fill`` before and after an axis, or cut where an amount is negative.

    None if the sign of an amount is not known.
    """
    cut, added = [], []
    for n in (first, last):
        if not n.at_least(0) and not (-n).at_least(0):
            return None
        cut.append(ZERO if n.at_least(0) else -n)
        added.append(n if n.at_least(0) else ZERO)
    if cut != [ZERO, ZERO]:
        x = slice_(x, axis, cut[0], x.shape[axis] - cut[0] - cut[1])
    ends = [expand(fill, [*x.shape[:axis], n, *x.shape[axis + 1 :]]) if n != ZERO else None for n in added]
    parts = [part for part in (ends[0], x, ends[1]) if part is not None]
    return concat(parts, axis) if len(parts) > 1 else x


def _repeat(call: Call) -> Result:
    x, counts = call.tensor(0), [call.size(n) for n in call.arg(1)]
    rank = max(len(counts), len(x.shape))
    counts = [*(ONE,) * (rank - len(counts)), *counts]
    sizes = [*(ONE,) * (rank - len(x.shape)), *x.shape]
    split: list[Size] = []
    wide: list[Size] = []
    for n, count in zip(sizes, counts, strict=True):
        if n != ONE and count != ONE:
            split.append(ONE)
            wide.append(count)
        split.append(n)
        wide.append(n if n != ONE else count)
    merged = [n * count for n, count in zip(sizes, counts, strict=True)]
    if any(n == ZERO for n in merged):
        return None
    found = expand(reshape(x, split) if tuple(split) != x.shape else x, wide)
    return reshape(found, merged) if len(merged) < len(wide) else found


def _repeat_interleave(call: Call) -> Result:
    x, count, axis = call.tensor(0), call.size(call.arg(1)), call.arg(2, "dim")
    if axis is None:
        x, axis = reshape(x, [product(x.shape)]), 0
    axis %= len(x.shape)
    head, tail = x.shape[: axis + 1], x.shape[axis + 1 :]
    wide = expand(reshape(x, [*head, ONE, *tail]), [*head, count, *tail])
    return reshape(wide, call.shape)


VIEWS: dict[str, Handler] = {
    **dict.fromkeys(
        "view.default view_copy.default reshape _unsafe_view _reshape_copy reshape_as view_as flatten"
        " unflatten unsqueeze unsqueeze_copy squeeze squeeze_copy ravel atleast_1d atleast_2d".split(),
        _reshape,
    ),
    **dict.fromkeys("expand expand_copy expand_as broadcast_to".split(), _expand),
    **dict.fromkeys("permute permute_copy".split(), _permute),
    **dict.fromkeys("transpose transpose_copy swapaxes swapdims".split(), _transpose),
    **dict.fromkeys("t t_copy mT adjoint".split(), _matrix_transpose),
    "numpy_T": _all_axes_reversed,
    **dict.fromkeys("movedim moveaxis".split(), _move_axes),
    **dict.fromkeys("select.int select_copy.int".split(), _select),
    **dict.fromkeys("slice.Tensor slice_copy.Tensor".split(), _slice),
    **dict.fromkeys("narrow.default narrow_copy.default".split(), _narrow),
    **dict.fromkeys(
        "split split_copy split_with_sizes split_with_sizes_copy unsafe_split"
        " unsafe_split_with_sizes".split(),
        _split,
    ),
    **dict.fromkeys("chunk unsafe_chunk".split(), _chunk),
    **dict.fromkeys("unbind unbind_copy".split(), _unbind),
    "flip": _flip,
    "slice_scatter": _slice_scatter,
    "select_scatter": _select_scatter,
    **dict.fromkeys("cat concat concatenate".split(), _cat),
    "stack": _stack,
    "diff": _diff,
    "roll": _roll,
    **dict.fromkeys("pad constant_pad_nd".split(), _pad),
    **dict.fromkeys("repeat tile".split(), _repeat),
    "repeat_interleave.self_int": _repeat_interleave,
}
"""Translations by operator name, all overloads, or one where the name has a dot."""
