"""One random input for every combination of sizes that a user asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from rewriter.errors import InputError
from rewriter.program.program import Program
from rewriter.verify.binding import base_symbols
from rewriter.verify.inputs import Case, generated_cases, random_case
from rewriter.verify.running import can_run

__all__ = ["dimensions", "sized_cases"]

MOST = 64
"""Combinations of sizes in one call."""


def dimensions(program: Program) -> tuple[str, ...]:
    """Return the named dimensions that the inputs of a program depend on, sorted."""
    values = (program.graph.values[name] for name in program.graph.inputs)
    return base_symbols([size for v in values for size in v.shape or ()])


def sized_cases(program: Program, sizes: Mapping[str, Sequence[int]], seed: int = 0) -> list[Case]:
    """Return one random input per combination of sizes, in the order given.

    Dimensions that are not named keep the first number that the model runs with
    (`rewriter.verify.inputs.generated_cases`); without any name that is the only size.

    Parameters
    ----------
    program
        Whose inputs are made.
    sizes
        Numbers by dimension; see `rewriter.verify.binding.parse_sizes`.
    seed
        Equal seeds give equal inputs.

    Raises
    ------
    InputError
        When a name is no dimension of the inputs, there are more than 64 combinations, or no input can be
        made.
    """
    known = dimensions(program)
    for name in sizes:
        if name not in known:
            there = ", ".join(known) or "none: every input has one shape only"
            raise InputError(f"there is no dimension {name!r}; {program.source} has {there}")
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
