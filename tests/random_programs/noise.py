"""What changes nothing: casts there and back, views that cancel, zeros that are added."""

from __future__ import annotations

import math

import numpy as np

from tests.random_programs.writer import Named, Writer

__all__ = ["WIDER", "disturbed"]

WIDER = {"float16": "float32", "bfloat16": "float32", "float32": "float64", "float64": "float64"}

_KINDS = {
    "none": 20.0,
    "identity": 1.0,
    "dropout": 1.0,
    "cast": 1.0,
    "transposed": 1.0,
    "flattened": 1.0,
    "unit axis": 1.0,
    "all of it": 1.0,
    "in two parts": 1.0,
    "plus zero": 1.0,
    "times one": 1.0,
    "over one": 1.0,
    "negated": 1.0,
    "expanded": 1.0,
    "padded": 1.0,
    "looked up": 1.0,
}


def disturbed(w: Writer, x: Named, name: str) -> Named:
    """Return the same numbers after up to two steps that change nothing."""
    for at in (0, 1):
        kind = w.draws.pick(f"{name}_noise{at}", _KINDS)
        x = _once(w, x, kind, f"{name}_noise{at}")
    return x


def _once(w: Writer, x: Named, kind: str, name: str) -> Named:
    match kind:
        case "none":
            return x
        case "identity" | "dropout":
            return w.apply(kind, x)
        case "cast":
            return w.apply("cast", w.apply("cast", x, to=WIDER[x.tensor.dtype]), to=x.tensor.dtype)
        case "plus zero":
            return w.apply("add", x, w.number(0.0, x.tensor.dtype))
        case "times one":
            return w.apply("mul", x, w.number(1.0, x.tensor.dtype))
        case "over one":
            return w.apply("div", x, w.number(1.0, x.tensor.dtype))
        case "negated":
            return w.apply("neg", w.apply("neg", x))
        case "expanded":
            return Named(w.program.apply("expand", x.tensor, shape=x.tensor.shape), x.axes)
    return _view(w, x, kind, name) if x.axes else x


def _view(w: Writer, x: Named, kind: str, name: str) -> Named:
    axis = w.draws.pick(f"{name}_axis", list(x.axes))
    at, size = x.at(axis), x.size(axis)
    match kind:
        case "transposed":
            return w.permuted(w.permuted(x, w.draws.order(f"{name}_order", x.axes[::-1])), x.axes)
        case "flattened":
            flat = w.program.apply("reshape", x.tensor, shape=(math.prod(x.tensor.shape),))
            return Named(w.program.apply("reshape", flat, shape=x.tensor.shape), x.axes)
        case "unit axis":
            more = w.program.apply("unsqueeze", x.tensor, axes=(at,))
            return Named(w.program.apply("squeeze", more, axes=(at,)), x.axes)
        case "all of it":
            return w.sliced(x, axis, 0, size)
        case "in two parts" if size > 1 and size not in w.program.dynamic:
            parts = w.program.split("split", x.tensor, axis=at, sizes=(1, size - 1))
            return Named(w.program.apply("concat", *parts, axis=at), x.axes)
        case "padded" if not any(n % p == 0 for n in (size, size + 1) for p in w.program.dynamic):
            more = w.program.apply("pad", x.tensor, axis=at, before=1, after=2, value=0.0)
            return Named(w.program.apply("slice", more, axis=at, start=1, stop=size + 1), x.axes)
        case "looked up" if size not in w.program.dynamic:
            index = w.program.constant(np.arange(size), "int64")
            return Named(w.program.apply("gather", x.tensor, index, axis=at), x.axes)
    return x
