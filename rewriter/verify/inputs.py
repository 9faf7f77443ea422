"""Inputs of a whole model when nobody gave any: from declared shapes, dtypes and what reads them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from rewriter.algebra.prims import Gather, Prim
from rewriter.errors import InputError
from rewriter.program.graph import Value
from rewriter.program.program import Arrays, Program
from rewriter.verify.binding import Binding, base_symbols, bound_shape, numpy_dtype
from rewriter.verify.dimensions import by_dimension
from rewriter.verify.metrics import is_floating
from rewriter.verify.patterns import keep_mask, normal

__all__ = ["LENGTHS", "Case", "generated_cases", "index_bounds", "mask_inputs", "plain_input", "random_case"]

LENGTHS = (7, 160, 1, 33, 16, 64)
"""Lengths to try for named dimensions: a short one, one longer than the usual blocks and windows, one."""

_FACTORS = {"huge inputs": 30.0, "tiny inputs": 2.0**-10, "zero inputs": 0.0}
"""What floats are multiplied by; where they are tiny, an epsilon in a denominator shows."""

SIDES = ((112, 112), (224, 224), (64, 64), (48, 160), (32, 96), (320, 320))
"""Heights and widths to try for images: multiples of the usual patch sizes 14, 16 and 32 between them."""

VARIANTS = 3
"""How many combinations of sizes are kept."""


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


def generated_cases(
    program: Program,
    seed: int = 0,
    can_run: Callable[[Arrays], bool] = lambda _: True,
    lengths: Sequence[int] = LENGTHS,
    sizes: Mapping[str, Sequence[int]] | None = None,
) -> Iterator[Case]:
    """Make random inputs at several sizes, and adversarial ones at the first of them.

    Indices stay below the length of the table that they are looked up in (`index_bounds`), other
    integers and booleans are masks of ones; the adversarial cases pad left and right, hide a whole
    row, and make floats huge, tiny or zero.

    Parameters
    ----------
    program
        Whose signature to fill.
    seed
        Equal seeds give equal inputs.
    can_run
        Sizes of which it says no are passed over, as models do not declare all that they require;
        if it never says yes, the first ones are used.
    lengths
        To try for named dimensions.
    sizes
        Numbers for some dimensions or axes (`rewriter.verify.dimensions.by_dimension`): each of them is
        tried, whatever ``can_run`` says; dimensions with fewer numbers begin again with their first.

    Raises
    ------
    InputError
        When an input has no known dtype or rank, or ``sizes`` names what is not there.
    """
    values, bounds = _declared(program), index_bounds(program)
    chosen = _chosen(values, lengths, by_dimension(program, sizes or {}))
    candidates = [
        (
            binding,
            {
                v.name: _plain(np.random.default_rng([seed, at, k]), v, binding, bounds)
                for k, v in enumerate(values)
            },
        )
        for at, binding in enumerate(chosen or _bindings(values, lengths))
    ]
    fitting = candidates if chosen else list(islice((c for c in candidates if can_run(c[1])), VARIANTS))
    for at, (binding, plain) in enumerate(fitting or candidates[:1]):
        yield Case(_name("random", binding), "random", plain, binding)
        if at == 0:
            yield from _adversarial(values, plain, binding, bounds, np.random.default_rng([seed, 99]))


def random_case(program: Program, sizes: Binding, seed: int = 0) -> Case:
    """Make one random input of given sizes.

    Parameters
    ----------
    program
        Whose signature to fill.
    sizes
        A number for every named dimension that the inputs depend on.
    seed
        Equal seeds give equal inputs.

    Raises
    ------
    InputError
        When an input has no known dtype or rank, or a dimension has no number or an impossible one.
    """
    values, bounds = _declared(program), index_bounds(program)
    try:
        inputs = {
            v.name: _plain(np.random.default_rng([seed, 0, k]), v, sizes, bounds)
            for k, v in enumerate(values)
        }
    except (ValueError, KeyError) as error:
        raise InputError(f"no input of {program.source} has sizes {dict(sizes)}: {error}") from error
    return Case(_name("random", sizes), "random", inputs, sizes)


def _declared(program: Program) -> list[Value]:
    values = [program.graph.values[name] for name in program.graph.inputs]
    for value in values:
        if value.shape is None or value.dtype is None:
            raise InputError(
                f"input {value.name!r} of {program.source} has no declared shape or dtype, so none can"
                " be made for it; give real ones with --data"
            )
    return values


def _adversarial(
    values: Sequence[Value],
    plain: Arrays,
    binding: Binding,
    bounds: Mapping[str, int],
    rng: np.random.Generator,
) -> Iterator[Case]:
    masks = [v for v in values if _is_mask(v, bounds)]
    floats = [v for v in values if is_floating(numpy_dtype(v.dtype or ""))]
    for flags in ("left padding", "right padding", "a row all false") if masks else ():
        hidden = {v.name: keep_mask(flags, rng, plain[v.name].shape, plain[v.name].dtype) for v in masks}
        yield Case(_name(flags, binding), "adversarial", {**plain, **hidden}, binding)
    for name, factor in _FACTORS.items() if floats else ():
        scaled = {v.name: (plain[v.name] * factor).astype(plain[v.name].dtype) for v in floats}
        yield Case(_name(name, binding), "adversarial", {**plain, **scaled}, binding)


def _chosen(
    values: Sequence[Value], lengths: Sequence[int], sizes: Mapping[str, Sequence[int]]
) -> list[Binding]:
    """Return a binding for every number that was asked for; the other dimensions are as they would be."""
    if not sizes:
        return []
    likeliest = _bindings(values, lengths)[0]
    count = max(map(len, sizes.values()))
    return [
        {**likeliest, **{name: numbers[at % len(numbers)] for name, numbers in sizes.items()}}
        for at in range(count)
    ]


def mask_inputs(program: Program) -> tuple[str, ...]:
    """Return the inputs that look like masks: not floating, looked up in no table, no positions."""
    bounds = index_bounds(program)
    values = [program.graph.values[name] for name in program.graph.inputs]
    return tuple(
        v.name for v in values if v.dtype is not None and v.shape is not None and _is_mask(v, bounds)
    )


def plain_input(program: Program, name: str, binding: Binding, seed: int = 0) -> np.ndarray:
    """Return what one input is in a random case: random numbers or indices, positions, a mask of ones."""
    (value,) = [v for v in _declared(program) if v.name == name]
    return _plain(np.random.default_rng(seed), value, binding, index_bounds(program))


def index_bounds(program: Program, names: Collection[str] | None = None) -> Mapping[str, int]:
    """Return, for every graph input that is looked up in a table, how many entries the table has.

    Parameters
    ----------
    program
        Whose tables.
    names
        Values that are looked up, in the place of the inputs.
    """
    inputs = set(program.graph.inputs if names is None else names)
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


def _bindings(values: Sequence[Value], tried: Sequence[int]) -> list[Binding]:
    """Return numbers for the named dimensions, the likeliest first."""
    every = base_symbols([size for v in values for size in v.shape or ()])
    images = [v for v in values if _is_image(v)]
    height, width = (set(base_symbols([(v.shape or ())[axis] for v in images])) for axis in (-2, -1))
    inner = set(base_symbols([s for v in values for s in (v.shape or ())[1:]]))
    batch = {
        s for s in base_symbols([v.shape[0] for v in values if len(v.shape or ()) > 1 and v.shape])
    } - inner
    lengths = [s for s in every if s not in batch | height | width]
    found = []
    for at in range(max(len(tried), len(SIDES))):
        length, sides = tried[at % len(tried)], SIDES[at % len(SIDES)]
        numbers = {**dict.fromkeys(width, sides[1]), **dict.fromkeys(height, sides[0])}
        numbers.update(dict.fromkeys(batch, 2 if at == 0 else 1))
        # two lengths are not equal unless both are one, as a cache of length n is not its own query
        numbers.update({s: length if length == 1 else length + 2 * k for k, s in enumerate(lengths)})
        found.append({s: numbers[s] for s in every})
    return [dict(t) for t in dict.fromkeys(tuple(b.items()) for b in found)]


# the name is all that tells positions from a mask of ones
_POSITIONS = re.compile(r"position|pos_ids", re.IGNORECASE)


def is_position(name: str) -> bool:
    """Whether an input takes positions, by its name."""
    return _POSITIONS.search(name) is not None


def _is_image(value: Value) -> bool:
    return len(value.shape or ()) == 4 and is_floating(numpy_dtype(value.dtype or ""))


def _is_mask(value: Value, bounds: Mapping[str, int]) -> bool:
    discrete = not is_floating(numpy_dtype(value.dtype or ""))
    return discrete and value.name not in bounds and bool(value.shape) and not is_position(value.name)


def _plain(rng: np.random.Generator, value: Value, binding: Binding, bounds: Mapping[str, int]) -> np.ndarray:
    shape, dtype = bound_shape(value.shape or (), binding), numpy_dtype(value.dtype or "")
    if is_floating(dtype):
        return normal(rng, shape, dtype)
    if is_position(value.name) and shape:
        return np.broadcast_to(np.arange(shape[-1]), shape).astype(dtype)
    if value.name in bounds:
        return np.asarray(rng.integers(0, max(1, bounds[value.name]), size=shape)).astype(dtype)
    return np.ones(shape, dtype)


def _name(what: str, binding: Binding) -> str:
    return ", ".join([what, *(f"{name}={number}" for name, number in binding.items())])
