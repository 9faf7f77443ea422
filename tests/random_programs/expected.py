"""What the engine is expected to find in a random program: the one place that says so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tests.random_programs.attention import Recipe
from tests.random_programs.noise import WIDER
from tests.random_programs.sources import Sizes, Sources

__all__ = ["MUTATIONS", "Expected", "Mutation", "expected_of", "underflows"]


@dataclass(frozen=True)
class Mutation:
    """One step done wrong.

    Parameters
    ----------
    attention
        Whether the result is still attention, and must be found.
    normaliser
        The spelling that the change needs, or empty.
    """

    attention: bool = False
    normaliser: str = ""


MUTATIONS: dict[str, Mutation] = {
    "over queries": Mutation(normaliser="softmax"),
    "over heads": Mutation(normaliser="softmax"),
    "over two axes": Mutation(normaliser="exp over sum"),
    "some keys": Mutation(normaliser="softmax"),
    "keys exchanged": Mutation(),
    "values exchanged": Mutation(),
    "heads exchanged": Mutation(),
    "hidden late": Mutation(normaliser="softmax"),
    "weights of keys": Mutation(normaliser="softmax"),
    "more below": Mutation(normaliser="exp over sum"),
    "scores returned": Mutation(attention=True),
    "weights returned": Mutation(attention=True, normaliser="softmax"),
    "normalised twice": Mutation(normaliser="softmax"),
    "key factor": Mutation(),
    "query factor": Mutation(attention=True),
    "squared": Mutation(normaliser="softmax"),
    "from one": Mutation(normaliser="softmax"),
    "wrong maximum": Mutation(normaliser="exp over sum"),
    "wrong sum": Mutation(normaliser="exp over sum"),
    "relu": Mutation(normaliser="exp over sum"),
    "sigmoid": Mutation(normaliser="exp over sum"),
}
"""Of those that are no attention nothing is expected but that numbers stay what they are."""


@dataclass(frozen=True)
class Expected:
    """What has to be found.

    Parameters
    ----------
    sites
        How many; 0 where nothing is expected.
    kinds, traits
        Of every site; one of the kinds.
    sizes
        ``batch × heads``, queries, keys.
    rows_only
        Nothing tells queries from heads: only their product is known.
    heads
        Where the graph shows them, else None. Where one operand shows heads and another one batch in the
        same way, both are right: the function is that of ``batch × heads``.
    groups
        How many heads share keys, where the graph shows that.
    scale
        Of every site, or None where it cannot be told from the operands.
    unheld
        Half precision does not hold what is rewritten: where every key of a query is hidden, adding the
        number that replaced the scores overflows. Verification must refuse it.
    """

    sites: int
    kinds: tuple[str, ...] = ("attention",)
    traits: frozenset[str] = frozenset()
    sizes: tuple[int, int, int] = (1, 1, 1)
    rows_only: bool = False
    heads: int | None = None
    groups: int | None = None
    scale: float | None = None
    unheld: bool = False


TRAITS = {
    "softcap": "softcap",
    "sink": "sink",
    "scores mixed": "head-mixing",
    "weights mixed": "head-mixing",
}
"""What a part of a recipe is called at a site."""


def expected_of(
    sizes: Sizes, r: Recipe, constant: str, sources: Sources, loop: bool, made: Mapping[str, object]
) -> Expected:
    """Return what is to be found where this is computed.

    Parameters
    ----------
    constant
        ``q`` where the queries are weights.
    sources
        What the graph shows of its operands.
    loop
        Whether every head is computed by itself.
    made
        All decisions.
    """
    unheld = _dtype(made) == "float16" and _is_blind(sizes, r) and _hides_by(made, r, "where", "smallest")
    if r.mutation in MUTATIONS and not MUTATIONS[r.mutation].attention:
        return Expected(0, unheld=unheld)
    if _leaves_no_trace(sizes, r) or underflows(made) or _sums_hidden(sizes, r, made):
        return Expected(0)
    heads = 1 if loop else sizes.heads or 1
    arrangement = made.get("arrangement")
    if arrangement == "query blocks":
        sizes = replace(sizes, queries=sizes.queries // 2)
    traits = frozenset(TRAITS[x] for x in r.extras)
    if _bends(made, len(r.masks)):
        if "head-mixing" in traits:
            return Expected(0)
        traits = traits - {"softcap"} | {"score-function"}
    opaque = made.get("before_scores", "nothing") != "nothing" and heads == sizes.groups
    # of two attentions one after the other, the second one's queries show nothing
    told = (
        arrangement != "stacked"
        and sources.shown
        and heads > 1
        and sizes.qk_dim > 1
        and not opaque
        and "head-mixing" not in traits
    )
    shared = made.get("groups") in ("expand", "tile", "broadcast") or sizes.groups == 1
    folded = bool(constant) and made.get("scale_on") in ("q", "both")
    # keys in two tensors may be read scaled: then the operands hold the scale
    folded = folded or (arrangement == "keys in two" and made.get("scale_on") in ("k", "both"))
    # a number that operators compute stays a tensor in FX
    folded = folded or (made.get("form") == "fx" and made.get("scale_by") in ("root", "inverse"))
    return Expected(
        sites=(sizes.heads or 1) if loop else 2 if arrangement in ("query blocks", "stacked") else 1,
        kinds=_kinds(constant, sizes),
        traits=traits,
        sizes=(math.prod(sizes.batch) * heads, sizes.queries, sizes.keys),
        rows_only=bool(constant) or 1 in (sizes.queries, sizes.keys) or _hides_heads(made, told),
        heads=heads if told and not sources.blurred else None,
        groups=sizes.groups if told and shared else None,
        scale=None if folded or traits & {"head-mixing", "score-function"} else r.scale,
        unheld=unheld,
    )


def _dtype(made: Mapping[str, object]) -> str:
    """Return what scores are computed in."""
    own = str(made["dtype"])
    return WIDER[own] if made.get("arrangement") == "wider" else own


def _kinds(constant: str, sizes: Sizes) -> tuple[str, ...]:
    if not constant:
        return ("attention",)
    return ("latent-attention", "pooling") if sizes.queries == 1 else ("latent-attention",)


def _hides_heads(made: Mapping[str, object], told: bool) -> bool:
    """Whether queries may as well be more heads: an axis holds both, or nothing shows the groups."""
    return made.get("q_joined") == "neighbours" or (made.get("groups") == "broadcast" and not told)


def _leaves_no_trace(sizes: Sizes, r: Recipe) -> bool:
    """Whether one head is mixed, or nothing names the axis of the only key."""
    named = ("softmax", "wider", "log softmax", "guarded")
    mixed = bool(r.extras & {"scores mixed", "weights mixed"})
    return (sizes.heads == 1 and mixed) or (sizes.keys == 1 and (mixed or r.normaliser not in named))


def underflows(made: Mapping[str, object]) -> bool:
    """Whether a NaN may be the rounding's and not the function's, so that it may stay or go.

    Where no maximum is subtracted and a finite number hides all keys, the sum of exponentials is 0 in
    floating point; in the reals it is not, and the result is the mean of the values.
    """
    unshifted = made["normaliser"] == "nothing subtracted" or made.get("after_unshifted") == "yes"
    return unshifted and any(made.get(f"mask{k}_fill", "-inf") != "-inf" for k in (0, 1))


def _sums_hidden(sizes: Sizes, r: Recipe, made: Mapping[str, object]) -> bool:
    """Whether a query that sees no key gets the sum of the values and not their mean, by rounding.

    A finite number by which all keys are hidden swallows the logarithm of how many they are.
    """
    return (
        r.normaliser == "logsumexp"
        and _is_blind(sizes, r, True)
        and _hides_by(made, r, "", "smallest", "-1e9")
    )


def _is_blind(sizes: Sizes, r: Recipe, padded: bool = False) -> bool:
    """Whether there is a query that sees no key, or may be one where keys are padding."""
    return ("window" in r.masks and sizes.queries > sizes.keys) or (padded and "padding" in r.masks)


def _hides_by(made: Mapping[str, object], r: Recipe, how: str, *fills: str) -> bool:
    """Whether keys are hidden by one of these numbers, and that way if one is named."""
    return any(
        made.get(f"mask{k}_fill") in fills and how in ("", made.get(f"mask{k}_applied"))
        for k in range(len(r.masks))
    )


def _bends(made: Mapping[str, object], masks: int) -> bool:
    """Whether scores are replaced by a number that does not hide them, or that shows what is added to it."""
    return any(_replaces(made, k) and (_shows(made, k, masks) or _rivals(made, k)) for k in range(masks))


def _replaces(made: Mapping[str, object], at: int) -> bool:
    return made.get(f"mask{at}_applied") == "where" and made.get(f"mask{at}_fill") != "-inf"


def _shows(made: Mapping[str, object], at: int, masks: int) -> bool:
    fill = made[f"mask{at}_fill"]
    if fill == "-1e4":
        return True
    absorbs = fill == "smallest" and _dtype(made) != "float16"
    return not absorbs and any(
        made[f"mask{k}"] != "none" and made.get(f"mask{k}_applied") != "where" for k in range(at + 1, masks)
    )


def _rivals(made: Mapping[str, object], at: int) -> bool:
    """Whether keys are hidden by adding, before, the number that replaces other scores: both keep a trace."""
    fill = made[f"mask{at}_fill"]
    low = fill == "-1e9" or (fill == "smallest" and _dtype(made) == "float16")
    return low and any(
        made.get(f"mask{k}_applied") in ("add where", "one minus") and made[f"mask{k}_fill"] == fill
        for k in range(at)
    )
