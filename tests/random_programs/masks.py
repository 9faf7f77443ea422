"""Masks and biases: what is added to the scores or put in their place."""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np

from tests.random_programs.steps import Tensor
from tests.random_programs.writer import Named, Writer

__all__ = ["MASKS", "masked"]

MASKS = {
    "none": 4.0,
    "causal": 3.0,
    "window": 1.0,
    "padding": 2.0,
    "bias": 2.0,
    "constant": 1.0,
    "looked up": 1.0,
    "slopes": 1.0,
}
"""Masks by name. Each is drawn at most once."""

_CLOSED = frozenset({"causal", "window"})


def masked(w: Writer, scores: Named, kind: str, name: str) -> Named:
    """Return the scores under one mask or bias."""
    if kind in ("causal", "window", "padding"):
        return _hidden(w, scores, _visible(w, scores, kind, name), kind, name)
    if kind == "none":
        return scores
    return w.combined("add", scores, _bias(w, scores, kind, name), f"{name}_add")


# what is seen


def _visible(w: Writer, scores: Named, kind: str, name: str) -> Named:
    if kind == "padding":
        axes = w.draws.order(f"{name}_axes", (*(a for a in scores.axes if a[0] == "b"), "j"))
        axes = axes if w.draws.maybe(f"{name}_of_batch", 0.7) else ("j",)
        return Named(w.input("keep", [scores.size(a) for a in axes], "keep", "bool"), axes)
    reach = w.draws.pick(f"{name}_reach", [1, 2, 3]) if kind == "window" else None
    ways = ["compared", "triangle"]
    fixed = all(scores.size(a) not in w.program.dynamic for a in "ij")
    if w.draws.pick(f"{name}_made", ways) == "triangle" and fixed:
        return _triangle(w, scores, reach)
    return _compared(w, scores, reach, name)


def _triangle(w: Writer, scores: Named, reach: int | None) -> Named:
    ones = np.ones((scores.size("i"), scores.size("j")))
    lower = np.tril(ones) if reach is None else np.tril(np.triu(ones, -reach))
    return Named(w.program.constant(lower, "bool"), ("i", "j"))


def _compared(w: Writer, scores: Named, reach: int | None, name: str) -> Named:
    """Compare positions that the graph counts itself."""
    i, j = (Named(w.program.apply("arange", count=scores.size(a)), (a,)) for a in "ij")
    rows = w.aligned(i, ("i", "j"))
    if reach is None and w.draws.maybe(f"{name}_difference", 0.4):
        apart = w.program.apply("sub", j.tensor, rows.tensor)
        return Named(w.program.apply("le", apart, w.number(0, "int64")), ("i", "j"))
    seen = w.program.apply("le", j.tensor, rows.tensor)
    if reach is not None:
        far = w.program.apply("sub", rows.tensor, j.tensor)
        near = w.program.apply("le", far, w.number(reach, "int64"))
        seen = w.program.apply("and", seen, near)
    return Named(seen, ("i", "j"))


def _hidden(w: Writer, scores: Named, seen: Named, kind: str, name: str) -> Named:
    fill = _fill(w, name)
    how = w.draws.pick(f"{name}_applied", {"where": 3, "add where": 2, "one minus": 1})
    if how == "one minus" and np.isfinite(fill):
        numbers = w.apply("cast", seen, to=w.dtype)
        hidden = Named(w.program.apply("sub", w.number(1.0), numbers.tensor), seen.axes)
        bias = w.apply("mul", hidden, w.number(fill))
        return w.combined("add", scores, bias, f"{name}_add")
    if how == "where":
        seen = w.aligned(seen, scores.axes)
        if w.draws.maybe(f"{name}_not", 0.4):
            hidden = w.apply("not", seen)
            return Named(_where(w, hidden.tensor, w.number(fill), scores.tensor), scores.axes)
        return Named(_where(w, seen.tensor, scores.tensor, w.number(fill)), scores.axes)
    bias = Named(_where(w, seen.tensor, w.number(0.0), w.number(fill)), seen.axes)
    return w.combined("add", scores, bias, f"{name}_add")


def _where(w: Writer, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return w.program.apply("where", condition, a, b)


def _fill(w: Writer, name: str) -> float:
    smallest = float((ml_dtypes.finfo if w.dtype == "bfloat16" else np.finfo)(w.dtype).min)
    fills = {"-inf": -np.inf, "smallest": smallest, "-1e4": -1e4}
    if w.dtype != "float16":
        fills["-1e9"] = -1e9
    return fills[w.draws.pick(f"{name}_fill", list(fills))]


# biases


def _some_axes(w: Writer, scores: Named, name: str, inner: Sequence[str]) -> tuple[str, ...]:
    """Return axes of a bias: ``inner`` and some of the others, in any order."""
    outer = [a for a in scores.axes if a not in ("i", "j") and w.draws.maybe(f"{name}_{a}", 0.5)]
    return w.draws.order(f"{name}_axes", (*outer, *inner))


def _bias(w: Writer, scores: Named, kind: str, name: str) -> Named:
    if kind == "bias":
        axes = _some_axes(w, scores, name, ("i", "j"))
        return Named(w.input("bias", [scores.size(a) for a in axes], "bias"), axes)
    dynamic = any(n in w.program.dynamic for n in scores.tensor.shape)
    if kind == "slopes" or dynamic:
        return _slopes(w, scores, name)
    heads = [a for a in scores.axes if a in ("h", "kv", "g")]
    if kind == "constant":
        axes = w.draws.order(f"{name}_axes", (*heads, "i", "j"))
        return Named(w.weight(name, [scores.size(a) for a in axes]), axes)
    rows, columns = scores.size("i"), scores.size("j")
    table = w.weight(name, [rows + columns, *(scores.size(a) for a in heads)])
    apart = np.arange(rows)[:, None] - np.arange(columns) + columns
    index = w.program.constant(apart, "int64")
    return Named(w.program.apply("gather", table, index, axis=0), ("i", "j", *heads))


def _slopes(w: Writer, scores: Named, name: str) -> Named:
    """Return ``slope of the head · (j - i)``, counted in the graph."""
    i, j = (Named(w.program.apply("arange", count=scores.size(a)), (a,)) for a in "ij")
    apart = w.program.apply("sub", j.tensor, w.aligned(i, ("i", "j")).tensor)
    numbers = Named(w.program.apply("cast", apart, to=w.dtype), ("i", "j"))
    heads = [a for a in scores.axes if a in ("h", "kv", "g") and scores.size(a) not in w.program.dynamic]
    if not heads:
        return w.apply("mul", numbers, w.number(0.25))
    shape = [scores.size(a) for a in heads]
    slopes = Named(
        w.program.constant(0.5 ** (1 + np.arange(np.prod(shape)).reshape(shape)), w.dtype), tuple(heads)
    )
    wide = w.aligned(slopes, (*heads, "i", "j"))
    return Named(w.program.apply("mul", wide.tensor, numbers.tensor), (*heads, "i", "j"))
