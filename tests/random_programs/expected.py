"""What the engine is expected to find in a random program: the one place that says so."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tests.random_programs.attention import Recipe
from tests.random_programs.sources import Sizes

__all__ = ["MUTATIONS", "Expected", "Mutation", "expected_of"]


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
    "keys exchanged": Mutation(attention=True),
    "values exchanged": Mutation(attention=True),
    "heads exchanged": Mutation(attention=True),
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
    kind, traits
        Of every site.
    sizes
        ``batch × heads``, queries, keys.
    heads, kv_heads
        Where the graph shows them, else None.
    scale
        Of every site, or None where it cannot be told from the operands.
    """

    sites: int
    kind: str = "attention"
    traits: frozenset[str] = frozenset()
    sizes: tuple[int, int, int] = (1, 1, 1)
    heads: int | None = None
    kv_heads: int | None = None
    scale: float | None = None


def expected_of(sizes: Sizes, r: Recipe, constant: str, shown: bool, loop: bool) -> Expected:
    """Return what is to be found where this is computed."""
    if r.mutation in MUTATIONS and not MUTATIONS[r.mutation].attention:
        return Expected(0)
    heads = 1 if loop else sizes.heads or 1
    traits = {
        "softcap": "softcap",
        "sink": "sink",
        "scores mixed": "head-mixing",
        "weights mixed": "head-mixing",
    }
    found = frozenset(traits[x] for x in r.extras)
    plain = not found & {"head-mixing"}
    told = shown and not loop and heads > 1 and plain
    return Expected(
        sites=(sizes.heads or 1) if loop else 1,
        kind="latent-attention" if constant else "attention",
        traits=found,
        sizes=(math.prod(sizes.batch) * heads, sizes.queries, sizes.keys),
        heads=heads if told else None,
        kv_heads=heads // sizes.groups if told else None,
        scale=r.scale if plain else None,
    )
