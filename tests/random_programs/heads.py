"""Heads that share keys and values, by every means, and heads that are mixed."""

from __future__ import annotations

import numpy as np

from tests.random_programs.products import contracted
from tests.random_programs.sources import Sources
from tests.random_programs.writer import Named, Writer

__all__ = ["grouped", "heads_joined", "mixed"]


def grouped(w: Writer, s: Sources, groups: int) -> tuple[Named, Named, Named]:
    """Return queries, keys and values that can be multiplied: keys repeated, or queries divided."""
    if groups == 1 or "kv" not in s.k.axes:
        return s.q, s.k, s.v
    tiled = w.draws.maybe("groups_tiled", 0.3)
    how = w.draws.pick("groups", {"expand": 3, "looked up": 1, "concat": 1, "tile": 1, "broadcast": 2})
    if how == "broadcast":
        parts = [("kv", s.q.size("h") // groups), ("g", groups)]
        return w.divided(s.q, "h", parts[::-1] if tiled else parts), s.k, s.v
    return s.q, _repeated(w, s.k, groups, how, tiled), _repeated(w, s.v, groups, how, tiled)


def _repeated(w: Writer, x: Named, groups: int, how: str, tiled: bool) -> Named:
    at, heads = x.at("kv"), x.size("kv")
    if how in ("looked up", "concat"):
        order = np.tile(np.arange(heads), groups) if tiled else np.repeat(np.arange(heads), groups)
        return _picked(w, x, [int(n) for n in order], how)
    pair = ("g", "kv") if tiled else ("kv", "g")
    axes = (*x.axes[:at], *pair, *x.axes[at + 1 :])
    wide = w.aligned(x, axes)
    if how == "expand":
        wide = w.expanded(wide, {"g": groups})
    else:
        repeats = tuple(groups if a == "g" else 1 for a in axes)
        wide = Named(w.program.apply("tile", wide.tensor, repeats=repeats), axes)
    groups_of_axes = [pair if a == "kv" else (a,) for a in x.axes]
    return w.merged(wide, groups_of_axes, ["h" if a == "kv" else a for a in x.axes])


def _picked(w: Writer, x: Named, order: list[int], how: str) -> Named:
    at = x.at("kv")
    if how == "looked up":
        index = w.program.constant(np.array(order), "int64")
        found = w.program.apply("gather", x.tensor, index, axis=at)
    else:
        found = w.program.apply("concat", *(w.sliced(x, "kv", n, n + 1).tensor for n in order), axis=at)
    return w.renamed(Named(found, x.axes), {"kv": "h"})


def heads_joined(w: Writer, x: Named) -> Named:
    """Return a result with one axis of heads where the queries were divided in groups."""
    if "g" not in x.axes:
        return x
    rest = [a for a in x.axes if a not in ("kv", "g")]
    pair = ("g", "kv") if w.draws.made.get("groups_tiled") == "yes" else ("kv", "g")
    return w.merged(x, [*((a,) for a in rest[:-1]), pair, (rest[-1],)], [*rest[:-1], "h", rest[-1]])


def mixed(w: Writer, x: Named, name: str) -> Named:
    """Return scores or weights of all heads mixed by a matrix."""
    heads = x.size("h")
    matrix = Named(w.weight(name, (heads, heads)), ("h", "mixed"))
    return w.renamed(contracted(w, x, matrix, "h", name), {"mixed": "h"})
