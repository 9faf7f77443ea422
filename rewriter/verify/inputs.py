"""Inputs of a whole model when nobody gave any: from declared shapes, dtypes and what reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rewriter.algebra.prims import Gather, Prim
from rewriter.errors import InputError
from rewriter.program.graph import Value
from rewriter.program.program import Arrays, Program
from rewriter.verify.binding import Binding, base_symbols, bound_shape, numpy_dtype
from rewriter.verify.metrics import is_floating
from rewriter.verify.patterns import keep_mask, normal

__all__ = ["Case", "generated_cases", "index_bounds"]

LENGTHS = (7, 33, 1)
IMAGE_SIDES = (112, 224, 64)
"""Sides that are multiples of the usual patch sizes 14, 16 and 32 between them."""

SMALL_INDEX = 8


@dataclass(frozen=True, eq=False)
class Case:
    """Inputs of a model by name.

    Parameters
    ----------
    name
        For the report.
    group
        ``"random"``, ``"adversarial"`` or ``"data"``.
    inputs
        One array per graph input.
    sizes
        The numbers chosen for named dimensions.
    """

    name: str
    group: str
    inputs: Arrays
    sizes: Binding = field(default_factory=dict)


def generated_cases(program: Program, seed: int = 0) -> Iterator[Case]:
    """Make random inputs at several sizes, and adversarial ones at the first of them.

    Indices stay below the length of the table that they are looked up in (`index_bounds`), other
    integers and booleans are masks of ones; the adversarial cases pad left and right, hide a whole
    row, and make floats huge or zero.

    Raises
    ------
    InputError
        When an input has no known dtype or rank.
    """
    values = [program.graph.values[name] for name in program.graph.inputs]
    for value in values:
        if value.shape is None or value.dtype is None:
            raise InputError(
                f"input {value.name!r} of {program.source} has no declared shape or dtype, so none can"
                " be made for it; give real ones with --data"
            )
    bounds = index_bounds(program)
    masks = [v for v in values if _is_mask(v, bounds)]
    floats = [v for v in values if is_floating(numpy_dtype(v.dtype or ""))]
    for at, binding in enumerate(_bindings(values)):
        rng = np.random.default_rng([seed, at])
        plain = {v.name: _plain(rng, v, binding, bounds) for v in values}
        yield Case(_name("random", binding), "random", plain, binding)
        if at:
            continue
        for flags in ("left padding", "right padding", "a row all false") if masks else ():
            hidden = {v.name: keep_mask(flags, rng, plain[v.name].shape, plain[v.name].dtype) for v in masks}
            yield Case(_name(flags, binding), "adversarial", {**plain, **hidden}, binding)
        for name, factor in (("huge inputs", 30), ("zero inputs", 0)) if floats else ():
            scaled = {v.name: (plain[v.name] * factor).astype(plain[v.name].dtype) for v in floats}
            yield Case(_name(name, binding), "adversarial", {**plain, **scaled}, binding)


def index_bounds(program: Program) -> Mapping[str, int]:
    """Return, for every graph input that is looked up in a table, how many entries the table has."""
    inputs = set(program.graph.inputs)
    found: dict[str, int] = {}
    for prim in program.prims().values():
        if not isinstance(prim.form, Gather):
            continue
        data, indices = prim.inputs
        source = _source(indices, inputs)
        entries = data.shape[prim.form.axis].known()
        if source is not None and entries is not None:
            found[source] = min(entries, found.get(source, entries))
    return found


def _source(prim: Prim, inputs: set[str]) -> str | None:
    """Return the graph input that a chain of one-operand steps starts from."""
    while prim.value not in inputs:
        if len(prim.inputs) != 1:
            return None
        prim = prim.inputs[0]
    return prim.value


def _bindings(values: Sequence[Value]) -> list[Binding]:
    sizes = [size for v in values for size in v.shape or ()]
    every = base_symbols(sizes)
    if not every:
        return [{}]
    batch = set(base_symbols([v.shape[0] for v in values if v.shape])) & {
        s for s in every if _BATCH.search(s)
    }
    sides = set(base_symbols([s for v in values if _is_image(v) for s in (v.shape or ())[-2:]]))
    lengths = [s for s in every if s not in batch and s not in sides]
    return [
        {
            s: rows
            if s in batch
            else side
            if s in sides
            else length
            if s == lengths[0]
            else length + 2 * lengths.index(s)
            for s in every
        }
        for rows, length, side in zip((2, 1, 1), LENGTHS, IMAGE_SIDES, strict=True)
    ]


# the name is all that tells a batch dimension from a length
_BATCH = re.compile(r"batch|^n$|^b$", re.IGNORECASE)
_POSITIONS = re.compile(r"position|pos_ids", re.IGNORECASE)


def _is_image(value: Value) -> bool:
    return len(value.shape or ()) == 4 and is_floating(numpy_dtype(value.dtype or ""))


def _is_mask(value: Value, bounds: Mapping[str, int]) -> bool:
    discrete = not is_floating(numpy_dtype(value.dtype or ""))
    return discrete and value.name not in bounds and bool(value.shape) and not _POSITIONS.search(value.name)


def _plain(rng: np.random.Generator, value: Value, binding: Binding, bounds: Mapping[str, int]) -> np.ndarray:
    shape, dtype = bound_shape(value.shape or (), binding), numpy_dtype(value.dtype or "")
    if is_floating(dtype):
        return normal(rng, shape, dtype)
    if _POSITIONS.search(value.name) and shape:
        return np.broadcast_to(np.arange(shape[-1]), shape).astype(dtype)
    if value.name in bounds:
        return np.asarray(rng.integers(0, max(1, bounds[value.name]), size=shape)).astype(dtype)
    return np.ones(shape, dtype)


def _name(what: str, binding: Binding) -> str:
    return ", ".join([what, *(f"{name}={number}" for name, number in binding.items())])
