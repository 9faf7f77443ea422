"""The decisions that make a random program: each has a name, and does not depend on any other."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

__all__ = ["Draws"]

Option = TypeVar("Option", str, int, float)


class Draws:
    """Named random decisions. The first option of each is the simplest: what shrinking tries.

    Parameters
    ----------
    seed
        Number of the case.
    fixed
        Decisions that are made, by name; one that is no option (any more) is the simplest.
    """

    def __init__(self, seed: int, fixed: Mapping[str, object]) -> None:
        self.seed, self.fixed = seed, fixed
        self.made: dict[str, object] = {}
        self.simplest: dict[str, object] = {}

    def pick(self, name: str, options: Mapping[Option, float] | Sequence[Option]) -> Option:
        """Return one option; a mapping has weights."""
        choices = list(options)
        weights = list(options.values()) if isinstance(options, Mapping) else None
        if name in self.fixed:
            chosen = next((c for c in choices if c == self.fixed[name]), choices[0])
        else:
            chosen = random.Random(f"{self.seed}/{name}").choices(choices, weights)[0]
        self.made[name], self.simplest[name] = chosen, choices[0]
        return chosen

    def maybe(self, name: str, chance: float) -> bool:
        """Return True with a chance."""
        return self.pick(name, {"no": 1 - chance, "yes": chance}) == "yes"

    def order(self, name: str, items: Sequence[str]) -> tuple[str, ...]:
        """Return the items in some order; the one given is the simplest."""
        shuffled = list(items)
        if len(items) > 1 and self.pick(name, {"as given": 0.3, "shuffled": 0.7}) == "shuffled":
            random.Random(f"{self.seed}/{name}/shuffle").shuffle(shuffled)
        return tuple(shuffled)

    def numbers(self, name: str, count: int, low: int, high: int) -> list[int]:
        """Return integers that are no decision of interest: contents, not structure."""
        return random.Random(f"{self.seed}/{name}/numbers").choices(range(low, high), k=count)
