"""Softmax over the keys, in every spelling; and what only looks like it."""

from __future__ import annotations

import numpy as np

from tests.random_programs.noise import WIDER, disturbed
from tests.random_programs.products import contracted
from tests.random_programs.values import summed
from tests.random_programs.writer import Named, Writer

__all__ = ["SPELLINGS", "sunk", "weighted"]

SPELLINGS = {
    "softmax": 6.0,
    "wider": 1.0,
    "exp over sum": 1.0,
    "nothing subtracted": 1.0,
    "times one over": 1.0,
    "log softmax": 1.0,
    "logsumexp": 1.0,
    "guarded": 1.0,
    "after the values": 2.0,
}
"""Ways to write weights that sum to one."""


def weighted(w: Writer, scores: Named, v: Named, spelling: str, mutation: str) -> tuple[Named, Named | None]:
    """Return the values summed with normalised weights, and the weights if there is such a tensor."""
    if spelling == "after the values":
        return _after(w, scores, v, mutation), None
    weights = _changed(w, disturbed(w, _weights(w, scores, spelling, mutation), "weights"), mutation)
    if mutation == "some keys":
        last = weights.size("j")
        return contracted(w, w.sliced(weights, "j", 1, last), w.sliced(v, "j", 1, last), "j", "pv"), weights
    return summed(w, weights, v), weights


def _weights(w: Writer, scores: Named, spelling: str, mutation: str) -> Named:
    axis = {"over queries": "i", "over heads": "h"}.get(mutation, "j")
    axis = axis if axis in scores.axes else scores.axes[0]
    at = scores.at(axis)
    match spelling:
        case "wider":
            wide = w.apply("cast", scores, to=WIDER[w.dtype])
            return w.apply("cast", w.apply("softmax", wide, axis=at), to=w.dtype)
        case "log softmax":
            return w.apply("exp", w.apply("log_softmax", scores, axis=at))
        case "logsumexp":
            sums = w.program.apply("reduce_logsumexp", scores.tensor, axes=(at,), keepdims=True)
            return w.apply("exp", w.apply("sub", scores, sums))
        case "guarded":
            found = w.apply("softmax", scores, axis=at)
            bad = w.apply("isnan", found)
            return Named(w.program.apply("where", bad.tensor, w.number(0.0), found.tensor), found.axes)
        case "softmax":
            return w.apply("softmax", scores, axis=at)
    top = _exponentials(w, scores, axis, spelling, mutation)
    total = _total(w, top, axis, mutation)
    if spelling == "times one over":
        inverse = w.program.apply("reciprocal", total.tensor)
        return Named(w.program.apply("mul", top.tensor, inverse), top.axes)
    return Named(w.program.apply("div", top.tensor, total.tensor), top.axes)


def _exponentials(w: Writer, scores: Named, axis: str, spelling: str, mutation: str) -> Named:
    if mutation in ("relu", "sigmoid"):
        return w.apply(mutation, scores)
    if spelling == "nothing subtracted":
        return w.apply("exp", scores)
    at = scores.at("i" if mutation == "wrong maximum" else axis)
    largest = w.program.apply("reduce_max", scores.tensor, axes=(at,), keepdims=True)
    return w.apply("exp", w.apply("sub", scores, largest))


def _total(w: Writer, top: Named, axis: str, mutation: str) -> Named:
    axes = {"wrong sum": ("i",), "over two axes": ("i", "j")}.get(mutation, (axis,))
    places = tuple(sorted(top.at(a) for a in axes))
    total = Named(w.program.apply("reduce_sum", top.tensor, axes=places, keepdims=True), top.axes)
    return w.apply("add", total, w.number(0.5)) if mutation == "more below" else total


def _after(w: Writer, scores: Named, v: Named, mutation: str) -> Named:
    spelling = "nothing subtracted" if w.draws.maybe("after_unshifted", 0.3) else "exp over sum"
    top = _exponentials(w, scores, "j", spelling, mutation)
    axes = tuple(a for a in top.axes if a != "j")
    total = w.program.apply("reduce_sum", top.tensor, axes=(top.at("j"),), keepdims=False)
    found = contracted(w, disturbed(w, top, "weights"), v, "j", "pv")
    return w.combined("div", found, Named(total, axes), "after")


def _changed(w: Writer, weights: Named, mutation: str) -> Named:
    match mutation:
        case "squared":
            return w.apply("mul", weights, weights.tensor)
        case "from one":
            return Named(w.program.apply("sub", w.number(1.0), weights.tensor), weights.axes)
        case "normalised twice":
            return w.apply("softmax", weights, axis=weights.at("j"))
        case "hidden late":
            lower = np.tril(np.ones((weights.size("i"), weights.size("j"))))
            return w.combined("mul", weights, Named(w.program.constant(lower, w.dtype), ("i", "j")), "late")
        case "weights of keys":
            gate = Named(w.input("gate", [weights.size("j")]), ("j",))
            return w.combined("mul", weights, gate, "gate")
    return weights


def sunk(w: Writer, scores: Named) -> tuple[Named, tuple[int, int]]:
    """Return scores with one more logit that has no value, and the range of the keys among them."""
    heads = [a for a in scores.axes if a in ("h", "kv", "g")]
    logit = w.aligned(Named(w.weight("sink", [scores.size(a) for a in heads]), tuple(heads)), scores.axes)
    sizes = {a: scores.size(a) for a in scores.axes if a != "j"}
    logit = w.expanded(logit, sizes)
    first = not w.program.dynamic and w.draws.maybe("sink_first", 0.3)
    pair = (logit, scores) if first else (scores, logit)
    joined = w.program.apply("concat", *(x.tensor for x in pair), axis=scores.at("j"))
    start = int(first)
    return Named(joined, scores.axes), (start, start + scores.size("j"))
