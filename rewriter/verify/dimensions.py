"""Dimensions of the inputs of a program, by name and by where they are: ``tokens``, ``input_ids.1``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rewriter.errors import InputError
from rewriter.program.program import Program
from rewriter.verify.binding import DIGITS, base_symbols

__all__ = ["by_dimension", "dimensions"]

PLACES = 2
"""Axes of inputs that an error names for each dimension."""


def dimensions(program: Program) -> dict[str, tuple[str, ...]]:
    """Return the dimensions that the inputs of a program depend on, each with the axes that are so long.

    An axis is ``INPUT.AXIS``, counted from 0. A dimension that shapes hold only as a part of an expression
    (``2*n``) has none.
    """
    values = [program.graph.values[name] for name in program.graph.inputs]
    axes = [(f"{v.name}.{at}", str(size)) for v in values for at, size in enumerate(v.shape or ())]
    names = base_symbols([size for v in values for size in v.shape or ()])
    return {name: tuple(axis for axis, size in axes if size == name) for name in names}


def by_dimension(program: Program, sizes: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    """Return sizes by dimension, where some are given by axis.

    Parameters
    ----------
    program
        Whose inputs are meant.
    sizes
        Numbers by the name of a dimension, or by ``INPUT.AXIS``.

    Raises
    ------
    InputError
        When there is no such dimension or axis, the axis has one size only or one that follows from others,
        or a dimension is given twice.
    """
    known = dimensions(program)
    found: dict[str, Sequence[int]] = {}
    given: dict[str, str] = {}
    for name, numbers in sizes.items():
        dimension = name if name in known else _at_axis(program, name, known)
        if dimension in found:
            raise InputError(f"{given[dimension]} and {name} are one dimension, {dimension}; give it once")
        found[dimension], given[dimension] = numbers, name
    return found


def _at_axis(program: Program, name: str, known: Mapping[str, Sequence[str]]) -> str:
    owner, _, axis = name.rpartition(".")
    if owner not in program.graph.inputs or not (axis.isascii() and axis.isdigit() and len(axis) < DIGITS):
        raise InputError(f"there is no dimension {name!r}; {program.source} has {_listed(known)}")
    shape = program.graph.values[owner].shape or ()
    if int(axis) >= len(shape):
        raise InputError(f"there is no axis {name}; {owner} has {len(shape)}, counted from 0")
    size = shape[int(axis)]
    if size.static:
        raise InputError(f"{name} is {size} in every input; no other size of it can be asked for")
    if str(size) not in known:
        raise InputError(f"{name} is {size}; give {' and '.join(base_symbols([size]))} instead")
    return str(size)


def _listed(known: Mapping[str, Sequence[str]]) -> str:
    shown = (
        f"{name} ({', '.join(axes[:PLACES])}{', …' if len(axes) > PLACES else ''})" if axes else name
        for name, axes in known.items()
    )
    return ", ".join(shown) or "none: every input has one shape only"
