"""Sizes that a user asks for: ``tokens=257,1025`` as numbers for the named dimensions of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product

from rewriter.errors import InputError
from rewriter.program.program import Program
from rewriter.verify.binding import Binding, base_symbols
from rewriter.verify.inputs import Case, generated_cases, random_case
from rewriter.verify.running import can_run

__all__ = ["dimensions", "parse_sizes", "sized_cases"]

MOST = 64
"""Combinations of sizes in one call."""


def dimensions(program: Program) -> tuple[str, ...]:
    """Return the named dimensions that the inputs of a program depend on, sorted."""
    values = (program.graph.values[name] for name in program.graph.inputs)
    return base_symbols([size for v in values for size in v.shape or ()])


def parse_sizes(texts: Iterable[str], known: Sequence[str]) -> Mapping[str, tuple[int, ...]]:
    """Read sizes.

    Parameters
    ----------
    texts
        ``NAME=N,N,…`` each; without a name where there is only one dimension.
    known
        Dimensions of the model.

    Raises
    ------
    InputError
        When a text is none of that, or names a dimension that is not there or stands twice.

    Examples
    --------
    >>> parse_sizes(["tokens=257, 1025"], ["batch", "tokens"])
    {'tokens': (257, 1025)}
    >>> parse_sizes(["7"], ["tokens"])
    {'tokens': (7,)}
    """
    found: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, equals, numbers = text.rpartition("=")
        name = name.strip()
        if not equals:
            if len(known) != 1:
                raise InputError(f"sizes {text!r} name no dimension; the model has {_listed(known)}")
            (name,) = known
        if name not in known:
            raise InputError(
                f"sizes {text!r}: there is no dimension {name!r}; the model has {_listed(known)}"
            )
        if name in found:
            raise InputError(f"sizes {text!r}: {name} stands twice; write all its numbers after one =")
        found[name] = tuple(_number(text, part) for part in numbers.split(","))
    return found


def sized_cases(program: Program, texts: Sequence[str], seed: int = 0) -> list[Case]:
    """Return one random input per combination of sizes, in the order given.

    Dimensions that are not named keep the first number that the model runs with
    (`rewriter.verify.inputs.generated_cases`); without any text that is the only size.

    Raises
    ------
    InputError
        As `parse_sizes`, and when there are more than 64 combinations or no input can be made.
    """
    asked = parse_sizes(texts, dimensions(program))
    first = next(generated_cases(program, seed, lambda inputs: can_run(program, inputs)))
    if not asked:
        return [first]
    combinations = list(product(*asked.values()))
    if len(combinations) > MOST:
        raise InputError(f"{len(combinations)} combinations of sizes; at most {MOST} are timed in one call")
    return [
        random_case(program, _with(first.sizes, dict(zip(asked, numbers, strict=True))), seed)
        for numbers in combinations
    ]


def _with(sizes: Binding, asked: Mapping[str, int]) -> Binding:
    return {**sizes, **asked}


def _number(text: str, part: str) -> int:
    # isdecimal alone takes digits of other scripts, and int would take signs and underscores
    part = part.strip()
    if not (part.isascii() and part.isdecimal()) or len(part) > 12 or int(part) < 1:
        raise InputError(f"sizes {text!r}: {part!r} is not a number from 1 on")
    return int(part)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none: every input has one shape only"
