"""Contractions of two tensors over one named axis, in every spelling."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.random_programs.writer import Named, Writer

__all__ = ["contracted"]

_LAST = ("i", "j", "e", "d")


def contracted(w: Writer, x: Named, y: Named, over: str, name: str) -> Named:
    """Return the sum over ``over`` of ``x · y``; axes that only one of them has stay."""
    ways = {"matmul": 5.0, "einsum": 3.0, "three axes": 2.0, "ellipsis": 1.0, "multiplied and summed": 1.0}
    if len(x.axes) == len(y.axes) == 2 and len({*x.axes, *y.axes}) == 3:
        ways["gemm"] = 2.0
    way = w.draws.pick(f"{name}_product", ways)
    if w.draws.maybe(f"{name}_exchanged", 0.2):
        x, y = y, x
    match way:
        case "einsum":
            return _einsum(w, x, y, over, name)
        case "multiplied and summed":
            return _multiplied(w, x, y, over, name)
        case "gemm":
            return _gemm(w, x, y, over, name)
        case _:
            return _matmul(w, x, y, over, name, way)


def _ends(x: Named, y: Named, over: str) -> tuple[str | None, str | None, list[str]]:
    """Return the axis of each that is a row or column of the product, and all the others."""

    def end(a: Named, b: Named) -> str | None:
        own = [n for n in a.axes if n not in b.axes]
        return min(own, key=lambda n: _LAST.index(n) if n in _LAST else len(_LAST), default=None)

    rows, columns = end(x, y), end(y, x)
    others = dict.fromkeys(n for n in (*x.axes, *y.axes) if n not in (rows, columns, over))
    return rows, columns, list(others)


def _matmul(w: Writer, x: Named, y: Named, over: str, name: str, way: str) -> Named:
    rows, columns, others = _ends(x, y, over)
    if rows is None or columns is None:
        return _multiplied(w, x, y, over, name)
    if way == "ellipsis":
        return _ellipsis(w, x, y, over, name, (rows, columns))
    leading = w.draws.order(f"{name}_leading", others)
    a, b = w.aligned(x, (*leading, rows, over)), w.aligned(y, (*leading, over, columns))
    if way == "three axes":
        return _three_axes(w, a, b, leading)
    a, b = _without_units(w, a, x, name + "_a"), _without_units(w, b, y, name + "_b")
    if len(a.axes) < len(b.axes) or len(b.axes) < len(a.axes):
        leading = max(a.axes, b.axes, key=len)[:-2]
    return Named(w.program.apply("matmul", a.tensor, b.tensor), (*leading, rows, columns))


def _without_units(w: Writer, a: Named, own: Named, name: str) -> Named:
    """Drop leading axes that were made for broadcasting, which need not be there."""
    count = 0
    while a.axes[count] not in own.axes:
        count += 1
    if not count or not w.draws.maybe(f"{name}_short", 0.5):
        return a
    return Named(w.program.apply("squeeze", a.tensor, axes=tuple(range(count))), a.axes[count:])


def _three_axes(w: Writer, a: Named, b: Named, leading: Sequence[str]) -> Named:
    sizes = {n: max(a.size(n), b.size(n)) for n in leading}
    a, b = w.expanded(a, sizes), w.expanded(b, sizes)
    ends = a.axes[-2], b.axes[-1]
    flat = [
        w.program.apply("reshape", t.tensor, shape=(math.prod(sizes.values()), *t.tensor.shape[-2:]))
        for t in (a, b)
    ]
    product = w.program.apply("matmul", *flat)
    shape = (*sizes.values(), *product.shape[-2:])
    return Named(w.program.apply("reshape", product, shape=shape), (*leading, *ends))


def _letters(w: Writer, axes: Sequence[str], name: str) -> dict[str, str]:
    letters = w.draws.order(f"{name}_letters", "abcdefghijklmnopqrstuvwxyz")
    return dict(zip(axes, letters, strict=False))


def _einsum(w: Writer, x: Named, y: Named, over: str, name: str) -> Named:
    every = list(dict.fromkeys((*x.axes, *y.axes)))
    kept = [n for n in every if n != over]
    found = w.draws.order(f"{name}_kept", kept)
    letter = _letters(w, every, name)
    text = ["".join(letter[n] for n in axes) for axes in (x.axes, y.axes, found)]
    equation = f"{text[0]},{text[1]}->{text[2]}"
    return Named(w.program.apply("einsum", x.tensor, y.tensor, equation=equation), found)


def _ellipsis(w: Writer, x: Named, y: Named, over: str, name: str, ends: tuple[str, str]) -> Named:
    rows, columns = ends
    shared = tuple(n for n in x.axes if n in y.axes and n != over)
    own = [[n for n in a.axes if n not in shared and n not in (rows, columns, over)] for a in (x, y)]
    a = w.permuted(x, (*shared, *own[0], *w.draws.order(f"{name}_ends_a", (rows, over))))
    b = w.permuted(y, (*shared, *own[1], *w.draws.order(f"{name}_ends_b", (over, columns))))
    rest = [*own[0], *own[1], *w.draws.order(f"{name}_ends", (rows, columns))]
    letter = _letters(w, [*rest, over], name)
    text = [
        "..." + "".join(letter[n] for n in axes)
        for axes in (a.axes[len(shared) :], b.axes[len(shared) :], rest)
    ]
    equation = f"{text[0]},{text[1]}->{text[2]}"
    return Named(w.program.apply("einsum", a.tensor, b.tensor, equation=equation), (*shared, *rest))


def _multiplied(w: Writer, x: Named, y: Named, over: str, name: str) -> Named:
    every = list(dict.fromkeys((*x.axes, *y.axes)))
    axes = w.draws.order(f"{name}_axes", every)
    a, b = w.aligned(x, axes), w.aligned(y, axes)
    product = w.program.apply("mul", a.tensor, b.tensor)
    at = axes.index(over)
    kept = tuple(n for n in axes if n != over)
    if w.draws.maybe(f"{name}_keepdims", 0.3):
        total = w.program.apply("reduce_sum", product, axes=(at,), keepdims=True)
        return Named(w.program.apply("squeeze", total, axes=(at,)), kept)
    return Named(w.program.apply("reduce_sum", product, axes=(at,), keepdims=False), kept)


def _gemm(w: Writer, x: Named, y: Named, over: str, name: str) -> Named:
    rows, columns, _ = _ends(x, y, over)
    assert rows is not None and columns is not None
    a = w.permuted(x, (rows, over))
    if w.draws.maybe(f"{name}_turned", 0.5):
        b, turned = w.permuted(y, (columns, over)), True
    else:
        b, turned = w.permuted(y, (over, columns)), False
    return Named(w.program.apply("gemm", a.tensor, b.tensor, alpha=1.0, transpose=turned), (rows, columns))
