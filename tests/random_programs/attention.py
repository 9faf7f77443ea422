"""One attention, from queries, keys and values to its result, with one step spoilt if so decided."""

from __future__ import annotations

from dataclasses import dataclass

from tests.random_programs.heads import mixed
from tests.random_programs.masks import masked
from tests.random_programs.noise import disturbed
from tests.random_programs.normalisers import sunk, weighted
from tests.random_programs.products import contracted
from tests.random_programs.values import in_two
from tests.random_programs.writer import Named, Writer

__all__ = ["Recipe", "attended"]


@dataclass(frozen=True)
class Recipe:
    """What is computed.

    Parameters
    ----------
    scale
        The factor of the scores.
    masks
        By name, see `masks`.
    normaliser
        Spelling of the softmax.
    extras
        ``softcap``, ``sink``, ``scores mixed``, ``weights mixed``.
    mutation
        What is wrong with it, or ``none``.
    """

    scale: float
    masks: tuple[str, ...]
    normaliser: str
    extras: frozenset[str]
    mutation: str


def attended(w: Writer, q: Named, k: Named, v: Named, r: Recipe) -> tuple[Named, list[Named]]:
    """Return the result, and what else the program returns."""
    k, v = _spoilt_operands(k, v, r.mutation)
    scores = _masked(w, _scored(w, q, k, r), r)
    scores = disturbed(w, scores, "masked_scores")
    seen = [scores] if r.mutation == "scores returned" else []
    if "sink" in r.extras:
        return _with_sink(w, scores, v, r), seen
    if "weights mixed" in r.extras:
        return _mixed_after(w, scores, v), seen
    found, weights = weighted(w, scores, v, r.normaliser, r.mutation)
    if r.mutation == "weights returned" and weights is not None:
        seen.append(weights)
    return disturbed(w, found, "result"), seen


def _spoilt_operands(k: Named, v: Named, mutation: str) -> tuple[Named, Named]:
    match mutation:
        case "keys exchanged" if k.size("j") == k.size("d"):
            k = Named(k.tensor, tuple({"j": "d", "d": "j"}.get(a, a) for a in k.axes))
        case "values exchanged" if v.size("j") == v.size("e"):
            v = Named(v.tensor, tuple({"j": "e", "e": "j"}.get(a, a) for a in v.axes))
        case "heads exchanged" if "h" in k.axes and k.size("j") == k.size("h"):
            k = Named(k.tensor, tuple({"j": "h", "h": "j"}.get(a, a) for a in k.axes))
    return k, v


def _scored(w: Writer, q: Named, k: Named, r: Recipe) -> Named:
    where = "none" if r.scale == 1.0 else w.draws.pick("scale_on", {"scores": 5, "q": 2, "k": 1, "both": 1})
    if where == "q":
        q = w.scaled(q, r.scale, "scale")
    if where == "k":
        k = w.scaled(k, r.scale, "scale")
    if where == "both":
        root = abs(r.scale) ** 0.5
        q = w.apply("mul", q, w.number(root if r.scale > 0 else -root))
        k = w.apply("mul", k, w.number(root))
    scores = disturbed(w, _products(w, q, k), "scores")
    if where == "scores":
        scores = w.scaled(scores, r.scale, "scale")
    if r.mutation == "none":
        scores = _tempered(w, scores)
    if "softcap" in r.extras:
        scores = w.scaled(scores, 1 / 2.5, "cap_in")
        scores = w.scaled(w.apply("tanh", scores), 2.5, "cap_out")
    if "scores mixed" in r.extras:
        scores = mixed(w, scores, "scores_mixed")
    return scores


def _products(w: Writer, q: Named, k: Named) -> Named:
    if w.draws.made.get("arrangement") != "keys in two":
        return contracted(w, q, k, "d", "qk")
    first, second = (contracted(w, q, x, "d", "qk") for (x,) in in_two(w, k))
    second = w.permuted(second, first.axes)
    return Named(w.program.apply("concat", first.tensor, second.tensor, axis=first.at("j")), first.axes)


def _tempered(w: Writer, scores: Named) -> Named:
    """Multiply by a temperature that is learned per head, or given."""
    match w.draws.pick("temperature", {"none": 20, "of heads": 1, "given": 1}):
        case "of heads":
            heads = tuple(a for a in scores.axes if a in ("h", "kv", "g") and scores.size(a) > 1)
            if heads:
                factor = Named(w.weight("temperature", [scores.size(a) for a in heads]), heads)
                return w.combined("mul", scores, factor, "temperature")
        case "given":
            return w.apply("mul", scores, w.input("temperature", [], "factor"))
    return scores


def _masked(w: Writer, scores: Named, r: Recipe) -> Named:
    if r.mutation in ("key factor", "query factor"):
        axis = "j" if r.mutation == "key factor" else "i"
        factor = Named(w.input("factor", [scores.size(axis)]), (axis,))
        scores = w.combined("mul", scores, factor, "factor")
    for k, mask in enumerate(r.masks):
        scores = masked(w, scores, mask, f"mask{k}")
    return scores


def _with_sink(w: Writer, scores: Named, v: Named, r: Recipe) -> Named:
    longer, (start, stop) = sunk(w, scores)
    at = longer.at("j")
    weights = w.apply("softmax", longer, axis=at)
    kept = disturbed(w, w.sliced(weights, "j", start, stop), "weights")
    return contracted(w, kept, v, "j", "pv")


def _mixed_after(w: Writer, scores: Named, v: Named) -> Named:
    weights = w.apply("softmax", scores, axis=scores.at("j"))
    return contracted(w, mixed(w, weights, "weights_mixed"), v, "j", "pv")
