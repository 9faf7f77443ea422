"""One random input for every combination of sizes that a user asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from rewriter.errors import InputError
from rewriter.program.program import Program
from rewriter.verify.dimensions import by_dimension
from rewriter.verify.inputs import Case, generated_cases, random_case
from rewriter.verify.running import can_run

__all__ = ["sized_cases"]

MOST = 64
"""Combinations of sizes in one call."""


def sized_cases(program: Program, sizes: Mapping[str, Sequence[int]], seed: int = 0) -> list[Case]:
    """Return one random input per combination of sizes, in the order given.

    Dimensions that are not named keep the first number that the model runs with
    (`rewriter.verify.inputs.generated_cases`); without any name that is the only size.

    Parameters
    ----------
    program
        Whose inputs are made.
    sizes
        Numbers by dimension or axis; see `rewriter.verify.dimensions.by_dimension`.
    seed
        Equal seeds give equal inputs.

    Raises
    ------
    InputError
        When a name is no dimension or axis of the inputs, there are more than 64 combinations, or no input
        can be made.
    """
    sizes = by_dimension(program, sizes)
    combinations = list(product(*sizes.values()))
    if len(combinations) > MOST:
        raise InputError(f"{len(combinations)} combinations of sizes; at most {MOST} are timed in one call")
    first = next(generated_cases(program, seed, lambda inputs: can_run(program, inputs)))
    if not sizes:
        return [first]
    return [
        random_case(program, {**first.sizes, **dict(zip(sizes, numbers, strict=True))}, seed)
        for numbers in combinations
    ]
