"""Inputs to compare programs on: random, large, and with rows that see nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.random_programs.steps import Input, Program, as_dtype

__all__ = ["ORDINARY", "feeds"]

ORDINARY = ("normal", "huge")
"""Inputs that hide nothing."""


def feeds(program: Program, seed: int) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield what is special about some inputs, and the inputs by name."""
    kinds = list(ORDINARY)
    if any(i.content in ("keep", "bias") for i in program.inputs):
        kinds += ["some keys are hidden", "some rows see nothing", "nothing is seen"]
    for at, kind in enumerate(kinds):
        rng = np.random.default_rng([seed, at, 1])
        yield kind, {i.tensor.name: _filled(i, kind, rng) for i in program.inputs}


def _filled(given: Input, kind: str, rng: np.random.Generator) -> np.ndarray:
    shape, dtype = given.tensor.shape, as_dtype(given.tensor.dtype)
    if given.content == "keep":
        seen = rng.random(shape) < (1.0 if kind in ORDINARY else 0.7)
        if kind == "nothing is seen":
            seen[...] = False
        elif kind == "some rows see nothing":
            seen[rng.random(shape[:-1]) < 0.5] = False
        return seen
    array = rng.normal(size=shape)
    if given.content == "bias":
        if kind == "some rows see nothing":
            array[rng.random(shape) < 0.5] = -np.inf
        elif kind == "nothing is seen":
            array[...] = -np.inf
    elif kind == "huge" and given.content == "numbers":
        array *= 30.0**0.5
    return array.astype(dtype)
