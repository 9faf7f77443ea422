"""Weights meet values: in one product, in two that are added, or with the output projection in one."""

from __future__ import annotations

from tests.random_programs.products import contracted
from tests.random_programs.writer import Named, Writer

__all__ = ["in_two", "summed"]


def in_two(w: Writer, *xs: Named) -> list[tuple[Named, ...]]:
    """Return both parts of tensors that have keys, the first ones first."""
    keys = xs[0].size("j")
    limits = ((0, keys // 2), (keys // 2, keys))
    return [tuple(w.sliced(x, "j", *limit) for x in xs) for limit in limits]


def summed(w: Writer, weights: Named, v: Named) -> Named:
    """Return the values summed with weights."""
    match w.draws.made.get("arrangement"):
        case "keys in two":
            parts = [contracted(w, p, x, "j", "pv") for p, x in in_two(w, weights, v)]
            return w.combined("add", parts[0], parts[1], "parts")
        case "output in product":
            return _projected(w, weights, v)
    return contracted(w, weights, v, "j", "pv")


def _projected(w: Writer, weights: Named, v: Named) -> Named:
    """Contract weights, values and the output projection of all heads at once."""
    shape = (v.size("h"), v.size("e"), 4)
    output = Named(w.weight("output_of_heads", shape, (shape[0] * shape[1]) ** -0.5), ("h", "e", "c"))
    every = list(dict.fromkeys((*weights.axes, *v.axes, "c")))
    kept = w.draws.order("projected_kept", [a for a in every if a not in ("h", "e", "j")])
    letter = dict(zip(every, "abcdefghijklmnop", strict=False))
    operands = w.draws.order("projected_order", ("weights", "v", "output"))
    named = {"weights": weights, "v": v, "output": output}
    text = ",".join("".join(letter[a] for a in named[n].axes) for n in operands)
    equation = f"{text}->{''.join(letter[a] for a in kept)}"
    found = w.program.apply("einsum", *(named[n].tensor for n in operands), equation=equation)
    return w.renamed(Named(found, kept), {"c": "e"})
