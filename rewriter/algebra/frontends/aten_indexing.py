"""aten operators that make tensors of nothing, and those that read at places given by a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from rewriter.algebra.frontends.aten_pointwise import recast
from rewriter.algebra.frontends.aten_scope import Call, Handler, Result, is_node
from rewriter.algebra.prims import (
    Constant,
    Map,
    Prim,
    broadcast,
    constant,
    expand,
    gather,
    iota,
    permute,
    pointwise,
    reshape,
    slice_,
    unsqueeze,
)
from rewriter.algebra.sizes import ONE, Size, product

__all__ = ["INDEXING"]

_SMALL = 1 << 16

# creation


def _arange(call: Call) -> Result:
    """Whole numbers as positions; other steps as a scaled range."""
    given = list(call.args)
    start, step = (
        (given[0] if len(given) > 1 else 0),
        (given[2] if len(given) > 2 else call.kwargs.get("step", 1)),
    )
    dtype, count = call.dtype or "int64", call.shape[0]
    if _whole(start) and _whole(step):
        exact = [call.size(int(n) if isinstance(n, float) else n) for n in (start, step)]
        return iota(count, exact[0], exact[1], dtype)
    if is_node(start) or is_node(step):
        return None
    steps = pointwise("mul", iota(count, dtype=dtype), call.scalar(step), dtype=dtype)
    return pointwise("add", steps, call.scalar(start), dtype=dtype)


def _whole(number: object) -> bool:
    return is_node(number) or (isinstance(number, int | float) and float(number).is_integer())


def _filled(value: object, call: Call) -> Prim:
    scalar = call.of(value) if is_node(value) else call.scalar(value)
    if call.dtype == "bool" and scalar.dtype != "bool":
        scalar = constant(np.asarray(bool(value))) if not is_node(value) else scalar
    scalar = recast(call, scalar) or scalar
    return expand(scalar, call.shape) if call.shape else scalar


def _full(at: int, call: Call) -> Result:
    return _filled(call.arg(at, "fill_value"), call)


def _scalar_tensor(call: Call) -> Result:
    return _filled(call.arg(0), call)


def _eye(call: Call) -> Result:
    rows, columns = (iota(n) for n in call.shape)
    return pointwise(
        "where",
        pointwise("eq", unsqueeze(rows, 1), columns),
        call.scalar(1),
        call.scalar(0),
        dtype=call.dtype,
    )


def _triangle(fn: str, call: Call) -> Result:
    x = call.tensor(0)
    row = unsqueeze(iota(x.shape[-2], start=call.size(call.arg(1, "diagonal", 0))), 1)
    zero = constant(np.asarray(False)) if x.dtype == "bool" else call.scalar(0)
    return pointwise("where", pointwise(fn, iota(x.shape[-1]), row), x, zero, dtype=x.dtype)


# reading at given places


def _embedding(call: Call) -> Result:
    return gather(call.tensor(0), call.tensor(1), 0)


def _index_select(call: Call) -> Result:
    x, places = call.tensor(0), call.tensor(2)
    return _read(x, places if places.shape else reshape(places, [1]), call.axis(1, len(x.shape)))


def _read(x: Prim, places: Prim, axis: int) -> Prim:
    """Read along one axis; known places that are evenly spaced are a slice."""
    known = places
    while known.form == Map("identity"):
        known = known.inputs[0]
    count = known.shape[0].known() if len(known.shape) == 1 else None
    if isinstance(known.form, Constant) and count is not None and 1 < count <= _SMALL:
        at = np.asarray(known.form.load())
        strides = np.diff(at)
        if (at >= 0).all() and strides[0] and (strides == strides[0]).all():
            return slice_(x, axis, int(at[0]), count, int(strides[0]))
    return gather(x, places, axis)


def _index(call: Call) -> Result:
    x, given = call.tensor(0), call.arg(1)
    places = {axis: call.of(arg) for axis, arg in enumerate(given) if arg is not None}
    if any("int" not in (p.dtype or "") or p.dtype == "uint8" for p in places.values()):
        return None
    places = {axis: _wrapped(call, p, x.shape[axis]) for axis, p in places.items()}
    if len(places) == 1:
        ((axis, at),) = places.items()
        return _read(x, at, axis)
    if _apart(list(places.values())):
        return _read_apart(x, places, call.shape)
    return _read_together(call, x, places)


def _wrapped(call: Call, places: Prim, n: Size) -> Prim:
    """Return places counted from the start of an axis."""
    if call.scope.progressions.natural(places):
        return places
    behind = pointwise("lt", places, constant(np.asarray(0)))
    return pointwise(
        "where", behind, pointwise("add", places, call.scope.number(n), dtype=places.dtype), places
    )


def _apart(places: Sequence[Prim]) -> bool:
    """Whether index tensors vary along different axes of what they broadcast to."""
    rank = max(len(p.shape) for p in places)
    seen: set[int] = set()
    for p in places:
        own = {rank - len(p.shape) + k for k, n in enumerate(p.shape) if n != ONE}
        if own & seen:
            return False
        seen |= own
    return True


def _read_apart(x: Prim, places: dict[int, Prim], shape: tuple[Size, ...]) -> Prim:
    """Read along one axis after the other: index tensors that vary along different axes do not interact."""
    rank = max(len(p.shape) for p in places.values())
    first = _first_axis(places)
    # where each axis that is read goes: those of x keep their order, those of the index tensors come together
    keys: list[tuple[int, int]] = []
    for axis in range(len(x.shape)):
        if axis not in places:
            keys.append((0 if axis < first else 2, axis))
            continue
        p = places[axis]
        keys.extend((1, rank - len(p.shape) + k) for k, n in enumerate(p.shape) if n != ONE)
    for axis in sorted(places, reverse=True):
        p = places[axis]
        x = gather(x, reshape(p, [n for n in p.shape if n != ONE]), axis)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return reshape(permute(x, order), shape)


def _first_axis(places: dict[int, Prim]) -> int:
    """Return where the axes of the index tensors go: to the front unless the indexed axes are neighbours."""
    axes = sorted(places)
    return axes[0] if axes[-1] - axes[0] == len(axes) - 1 else 0


def _read_together(call: Call, x: Prim, places: dict[int, Prim]) -> Prim:
    """Read along the indexed axes merged into one."""
    axes, first = sorted(places), _first_axis(places)
    others = [axis for axis in range(len(x.shape)) if axis not in places]
    order = [*others[:first], *axes, *others[first:]]
    sizes = [x.shape[axis] for axis in order]
    merged = reshape(
        permute(x, order), [*sizes[:first], product(sizes[first:][: len(axes)]), *sizes[first:][len(axes) :]]
    )
    flat: Prim | None = None
    for axis in axes:
        if flat is None:
            flat = places[axis]
        else:
            ahead = pointwise("mul", flat, call.scope.number(x.shape[axis]), dtype="int64")
            flat = pointwise("add", ahead, places[axis], dtype="int64")
    assert flat is not None
    together = broadcast(*(p.shape for p in places.values()))
    return gather(merged, expand(flat, together) if flat.shape != together else flat, first)


INDEXING: dict[str, Handler] = {
    "arange": _arange,
    "full": partial(_full, 1),
    "full_like": partial(_full, 1),
    "new_full": partial(_full, 2),
    "fill.Scalar": partial(_full, 1),
    **dict.fromkeys("zeros zeros_like new_zeros zero".split(), partial(_filled, 0)),
    **dict.fromkeys("ones ones_like new_ones".split(), partial(_filled, 1)),
    "scalar_tensor": _scalar_tensor,
    "eye": _eye,
    "tril": partial(_triangle, "le"),
    "triu": partial(_triangle, "ge"),
    "embedding": _embedding,
    "index_select": _index_select,
    "index.Tensor": _index,
    "_unsafe_index.Tensor": _index,
}
"""Translations by operator name, all overloads, or one where the name has a dot."""
