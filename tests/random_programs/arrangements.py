"""What surrounds or divides an attention: another precision, blocks of queries, keys in two, another one."""

from __future__ import annotations

from collections.abc import Callable

from tests.random_programs.attention import Recipe, attended
from tests.random_programs.noise import WIDER
from tests.random_programs.sources import Sizes, Sources
from tests.random_programs.writer import Named, Writer

__all__ = ["arranged", "arrangement"]

Attended = tuple[Named, list[Named]]


def arrangement(w: Writer, r: Recipe, s: Sources, sizes: Sizes, alone: bool) -> str:
    """Decide among what can be written.

    Parameters
    ----------
    alone
        Nothing else may be done to it.
    """
    ways = {"one": 24.0}
    if alone or r.mutation != "none":
        return w.draws.pick("arrangement", ways)
    if w.dtype in ("float16", "bfloat16", "float32"):
        ways["wider"] = 1.5
    fixed = w.program.dynamic.keys().isdisjoint((sizes.queries, sizes.keys))
    if fixed and sizes.queries % 2 == 0 and {*r.masks} <= {"none", "padding"}:
        ways["query blocks"] = 2.0
    if fixed and sizes.keys > 2 and r.normaliser == "softmax" and not r.extras:
        ways["keys in two"] = 2.5
    heads = "h" in s.q.axes and sizes.groups == 1
    if heads and r.normaliser != "after the values" and not r.extras:
        ways["output in product"] = 1.5
    if sizes.qk_dim == sizes.v_dim and not r.extras:
        ways["stacked"] = 2.0
    return w.draws.pick("arrangement", ways)


def arranged(w: Writer, q: Named, k: Named, v: Named, r: Recipe, how: str) -> Attended:
    """Return the result of an attention, or of two, and what else the program returns."""
    return _WAYS.get(how, attended)(w, q, k, v, r)


def _wider(w: Writer, q: Named, k: Named, v: Named, r: Recipe) -> Attended:
    own = w.dtype
    w.dtype = WIDER[own]
    q, k, v = (w.apply("cast", x, to=w.dtype) for x in (q, k, v))
    found, seen = attended(w, q, k, v, r)
    w.dtype = own
    return w.apply("cast", found, to=own), seen


def _in_blocks(w: Writer, q: Named, k: Named, v: Named, r: Recipe) -> Attended:
    half = q.size("i") // 2
    parts = [attended(w, w.sliced(q, "i", at, at + half), k, v, r)[0] for at in (0, half)]
    axes = parts[0].axes
    tensors = [w.permuted(p, axes).tensor for p in parts]
    return Named(w.program.apply("concat", *tensors, axis=axes.index("i")), axes), []


def _stacked(w: Writer, q: Named, k: Named, v: Named, r: Recipe) -> Attended:
    first, _ = attended(w, q, k, v, r)
    return attended(w, w.renamed(first, {"e": "d"}), k, v, r)


_WAYS: dict[str, Callable[[Writer, Named, Named, Named, Recipe], Attended]] = {
    "wider": _wider,
    "query blocks": _in_blocks,
    "stacked": _stacked,
}
