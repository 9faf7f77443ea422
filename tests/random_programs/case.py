"""A random case: the program of a number, and what is to be found in it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tests.random_programs.arrangements import arranged, arrangement
from tests.random_programs.attention import Recipe, attended
from tests.random_programs.draws import Draws
from tests.random_programs.expected import MUTATIONS, Expected, expected_of
from tests.random_programs.heads import grouped, heads_joined
from tests.random_programs.masks import MASKS
from tests.random_programs.noise import disturbed
from tests.random_programs.normalisers import SPELLINGS
from tests.random_programs.sources import Sizes, sources
from tests.random_programs.steps import Program
from tests.random_programs.writer import Named, Writer

__all__ = ["Case", "case"]


@dataclass(frozen=True)
class Case:
    """One random program.

    Parameters
    ----------
    seed, fixed
        What it is made from.
    draws
        All decisions.
    program
        The steps.
    form
        ``onnx`` or ``fx``.
    expected
        What is to be found.
    """

    seed: int
    fixed: dict[str, object]
    draws: Draws
    program: Program
    form: str
    expected: Expected

    def __str__(self) -> str:
        fixed = "".join(f", {name}={value!r}" for name, value in self.fixed.items())
        return f"case({self.seed}{fixed})"


def case(seed: int, **fixed: object) -> Case:
    """Return a case by its number, with some decisions made by hand."""
    draws = Draws(seed, fixed)
    form = draws.pick("form", {"onnx": 0.98, "fx": 0.02})
    dtypes = {"float32": 10, "float64": 3, "float16": 2}
    dtype = draws.pick("dtype", {**dtypes, "bfloat16": 2} if form == "fx" else dtypes)
    w = Writer(draws, dtype)
    sizes, recipe = _sizes(draws), _recipe(draws)
    place = _place(draws, sizes)
    constant = "q" if "packed" not in place and draws.pick("constant", {"no": 14, "q": 1}) == "q" else ""
    if form == "onnx" and not constant and recipe.mutation == "none":
        sizes = _free(w, sizes)
    s = sources(w, sizes, place, constant)
    q, k, v = grouped(w, s, sizes.groups)
    recipe = _sensible(recipe, q)
    loop = sizes.heads is not None and "h" in q.axes and "h" in k.axes and draws.maybe("loop", 0.05)
    loop = loop and not recipe.extras & {"scores mixed", "weights mixed"} and recipe.mutation == "none"
    how = arrangement(w, recipe, replace(s, q=q, k=k, v=v), sizes, bool(loop or constant))
    result, seen = _looped(w, q, k, v, recipe) if loop else arranged(w, q, k, v, recipe, how)
    result = _finished(w, result)
    w.program.outputs = [result.tensor.name, *(x.tensor.name for x in seen)]
    w.program.prune()
    found = expected_of(sizes, recipe, constant, s, loop, draws.made)
    return Case(seed, dict(fixed), draws, w.program, form, found)


def _sizes(draws: Draws) -> Sizes:
    rank = draws.pick("batch_axes", {1: 5, 0: 1, 2: 2, 3: 1})
    if draws.maybe("sizes_coincide", 0.12):
        n = draws.pick("every_size", [2, 4, 3])
        return Sizes((n,) * rank, n, 1, n, n, n, n)
    batch = tuple(draws.pick(f"batch{k}", {2: 4, 1: 2, 3: 2}) for k in range(rank))
    kv = draws.pick("kv_heads", {0: 2, 1: 1, 2: 4, 3: 2})
    groups = draws.pick("group", {1: 5, 2: 2, 3: 1}) if kv else 1
    queries = draws.pick("queries", {4: 4, 5: 3, 1: 1, 2: 1, 6: 2, 9: 2})
    keys = queries if draws.maybe("square", 0.6) else draws.pick("keys", {4: 2, 7: 4, 1: 1, 3: 2, 8: 2})
    qk = draws.pick("qk_dim", {4: 4, 8: 3, 2: 1, 5: 2, 1: 0.7})
    v = qk if draws.maybe("equal_features", 0.7) else draws.pick("v_dim", {3: 3, 6: 2, 1: 1})
    return Sizes(batch, kv * groups or None, groups, queries, keys, qk, v)


def _place(draws: Draws, sizes: Sizes) -> str:
    places = {"inputs": 4.0, "projected": 3.0}
    square = sizes.queries == sizes.keys and sizes.qk_dim == sizes.v_dim and sizes.groups == 1
    if square:
        places.update({"packed": 2.0, "packed projection": 2.0})
    return draws.pick("place", places)


def _free(w: Writer, sizes: Sizes) -> Sizes:
    """Leave some sizes open; each is then a prime that no other size is a multiple of."""
    what = w.draws.pick("dynamic", {"nothing": 8, "batch": 1, "lengths": 1, "all": 1})
    if what in ("batch", "all") and sizes.batch:
        w.program.dynamic[11] = "batch"
        sizes = replace(sizes, batch=(11, *(1 for _ in sizes.batch[1:])))
    if what in ("lengths", "all"):
        square = sizes.queries == sizes.keys
        w.program.dynamic[13] = "length"
        if not square:
            w.program.dynamic[17] = "keys"
        sizes = replace(sizes, queries=13, keys=13 if square else 17)
    return sizes


def _recipe(draws: Draws) -> Recipe:
    mutation = draws.pick("mutation", {"none": 2.2 * len(MUTATIONS), **dict.fromkeys(MUTATIONS, 1.0)})
    scale = draws.pick("scale", {"root": 5, "none": 2, "number": 2, "negative": 0.5})
    masks = [
        draws.pick(f"mask{k}", MASKS if k == 0 else {"none": 5.0, **{m: 0.4 for m in MASKS if m != "none"}})
        for k in (0, 1)
    ]
    extras = {"none": 14, "softcap": 1, "sink": 1, "scores mixed": 0.7, "weights mixed": 0.7}
    extra = draws.pick("extra", extras)
    normaliser = draws.pick("normaliser", SPELLINGS)
    value = {"root": 0.0, "none": 1.0, "number": 0.3, "negative": -0.5}[scale]
    return Recipe(value, tuple(dict.fromkeys(masks)), normaliser, frozenset({extra} - {"none"}), mutation)


def _sensible(r: Recipe, q: Named) -> Recipe:
    """Return a recipe of which every part can be written."""
    scale = r.scale or 1 / math.sqrt(q.size("d"))
    normaliser, mutation, extras = r.normaliser, r.mutation, r.extras
    if mutation in MUTATIONS:
        extras = frozenset[str]()
        normaliser = MUTATIONS[mutation].normaliser or normaliser
    if "h" not in q.axes:
        extras -= {"scores mixed", "weights mixed"}
    return Recipe(scale, r.masks, normaliser, extras, mutation)


def _looped(w: Writer, q: Named, k: Named, v: Named, r: Recipe) -> tuple[Named, list[Named]]:
    how = w.draws.pick("loop_by", ["slice", "gather"])
    parts = []
    for at in range(q.size("h")):
        one = [w.one_of(x, "h", at, how) for x in (q, k, v)]
        found, _ = attended(w, one[0], one[1], one[2], r)
        parts.append(w.aligned(found, ("h", *found.axes)))
    return Named(w.program.apply("concat", *(p.tensor for p in parts), axis=0), parts[0].axes), []


def _finished(w: Writer, x: Named) -> Named:
    x = heads_joined(w, x)
    x = w.permuted(x, w.draws.order("output_layout", x.axes))
    if "h" in x.axes and w.draws.maybe("heads_merged", 0.5):
        rest = [a for a in x.axes if a not in ("h", "e")]
        x = w.merged(x, [*((a,) for a in rest), ("h", "e")], [*rest, "e"])
    if x.axes[-1] == "e" and w.draws.maybe("output_projection", 0.4):
        width = x.size("e")
        weight = w.weight("output", (width, 4), width**-0.5)
        x = Named(w.program.apply("matmul", x.tensor, weight), x.axes)
    return disturbed(w, x, "output")
