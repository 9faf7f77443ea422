"""Probes: what a site's old and new computation are both run on before a rewrite is committed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

import rewriter.sites.oracle
from rewriter.algebra.sizes import Size
from rewriter.algebra.term import Read, Term, leaves
from rewriter.program.graph import Value
from rewriter.program.program import Arrays, Program
from rewriter.sites.formula import Formula
from rewriter.sites.site import AttentionSite
from rewriter.verify.binding import Binding, base_symbols, bound_shape, bound_size, numpy_dtype
from rewriter.verify.metrics import is_floating
from rewriter.verify.patterns import additive, keep_mask, normal

__all__ = ["Oracle", "Probe", "bindings", "probes"]


class Oracle(Protocol):
    """What decides a site's inputs; see `rewriter.sites.oracle`, which is the default."""

    def free_inputs(self, program: Program, site: AttentionSite) -> tuple[str, ...]:
        """Return the values that may be given any numbers and decide all the others."""

    def complete(
        self, program: Program, site: AttentionSite, arrays: Arrays, sizes: Binding | None = None
    ) -> dict[str, np.ndarray]:
        """Return an array for each of ``site.inputs`` from arrays for `free_inputs`."""


@dataclass(frozen=True, eq=False)
class Probe:
    """Arrays for the inputs of a site.

    Parameters
    ----------
    name
        What is special about it, for the report: ``"left padding, s0=7"``.
    arrays
        One array per entry of ``site.inputs``.
    """

    name: str
    arrays: Mapping[str, np.ndarray]


def probes(
    site: AttentionSite,
    program: Program,
    seed: int = 0,
    sizes: Sequence[Binding] | None = None,
    *,
    lengths: Sequence[int] = (),
    oracle: Oracle = rewriter.sites.oracle,
) -> list[Probe]:
    """Return random, large, tied, coinciding and masked inputs for one site.

    Every pattern at the first binding, random numbers at the others. A mask that the graph makes of
    positions and constants keeps its value; a padding mask that it is made of gets every pattern.

    Parameters
    ----------
    site, program
        Where the inputs are; dtypes and shapes come from ``program.prims()``: it knows more than the file.
    seed
        Equal seeds give equal probes.
    sizes
        Numbers for the named dimensions, one binding per variant; `bindings` by default.
    lengths
        Further lengths to try where they are dynamic.
    oracle
        Decides which inputs are free and computes the rest.

    Raises
    ------
    ValueError
        When the shape or dtype of an input is unknown, or a dimension has no number.
    """
    values = [_known(program, name) for name in oracle.free_inputs(program, site)]
    numbers, positive = _numbers(site.formula), _positive(site)
    every = [
        s for name in (*site.inputs, *(v.name for v in values)) for s in _known(program, name).shape or ()
    ]
    variants = list(sizes) if sizes is not None else bindings(site, every, lengths)
    made: list[Probe] = []
    for at, binding in enumerate(variants):
        tag = "".join(f", {name}={number}" for name, number in binding.items())
        derived = {
            symbol: bound_size(Size.symbol(symbol), binding) for size in every for symbol in size.symbols
        }
        for case in _CASES if at == 0 else _CASES[:1]:
            rng = np.random.default_rng([seed, at])
            free = {v.name: case.array(rng, v, binding, v.name in numbers) for v in values}
            free.update((name, np.abs(free[name])) for name in positive & free.keys())
            arrays = oracle.complete(program, site, free, {**derived, **binding})
            if not any(_same(arrays, other.arrays) for other in made):
                made.append(Probe(case.name + tag, arrays))
    return made


def _numbers(formula: Formula) -> set[str]:
    """Return the values that are no part of a mask: queries, keys and values, factors, sinks."""
    factors = [term for term, _ in formula.factors]
    beside = _read_by([*factors, formula.sink]) - _read_by([formula.bias])
    return {x.value for x in formula.operands} | beside


def _positive(site: AttentionSite) -> set[str]:
    """Return queries and keys whose products are divided by their sum: with random signs it would vanish."""
    operands = (site.formula.q, site.formula.k) if site.normalizer == "sum" else ()
    return {x.value for x in operands if x is not None}


def _read_by(terms: Sequence[Term | None]) -> set[str]:
    reads = (leaf for term in terms if term is not None for leaf in leaves(term) if isinstance(leaf, Read))
    return {read.prim.value for read in reads if read.prim.value is not None}


def _known(program: Program, name: str) -> Value:
    prim = program.prims()[name]
    return Value(name, prim.shape, prim.dtype)


def bindings(site: AttentionSite, sizes: Sequence[Size] = (), more: Sequence[int] = ()) -> list[Binding]:
    """Return numbers for a site's dimensions: odd lengths first, then 1, then a length equal to the heads.

    Parameters
    ----------
    site
        Tells batch, query and key dimensions apart.
    sizes
        Further sizes whose dimensions need a number.
    more
        Lengths to try besides.
    """
    every = base_symbols([site.batch, site.heads, site.queries, site.keys, *sizes])
    if not every:
        return [{}]
    batch = set(base_symbols([site.batch])) - set(base_symbols([site.queries, site.keys]))
    lengths = [s for s in every if s not in batch]
    heads = site.heads.known() or 4

    def bind(first: int, step: int, rows: int) -> Binding:
        return {
            **dict.fromkeys(sorted(batch), rows),
            **{s: first + step * at for at, s in enumerate(lengths)},
        }

    found = [bind(7, 4, 2), bind(33, 2, 1)]
    found += [bind(1, 0, 1), bind(heads, 0, heads)]
    found += [bind(n, 2, 1) for n in more]
    found = [_possible(b, lengths, [site.queries - 1, site.keys - 1, *sizes]) for b in found]
    return [dict(t) for t in dict.fromkeys(tuple(b.items()) for b in found)]


def _possible(binding: Binding, lengths: Sequence[str], sizes: Sequence[Size]) -> dict[str, int]:
    """Return a binding with the lengths doubled until no size that strides and margins derive is negative."""
    found = dict(binding)
    for _ in range(8):
        if all(_exists(size, found) for size in sizes):
            return found
        found.update({name: 2 * found[name] + 1 for name in lengths})
    return dict(binding)


def _exists(size: Size, binding: Binding) -> bool:
    try:
        return bound_size(size, binding) >= 0
    except ValueError:
        return False


@dataclass(frozen=True)
class _Case:
    """How each kind of input is filled.

    ``flags`` fills booleans, integers and biases; ``low`` is what a bias has where a flag is False
    (None: the bias is small random numbers), ``spread`` how far the others are from 0.
    """

    name: str
    flags: str = "random"
    low: float | None = None
    spread: float = 0.0
    scale: float = 1.0
    constant: float | None = None
    coinciding: bool = False

    def array(self, rng: np.random.Generator, value: Value, binding: Binding, core: bool) -> np.ndarray:
        shape, dtype = bound_shape(_shape(value), binding), numpy_dtype(value.dtype or "")
        if not is_floating(dtype):
            return keep_mask(self.flags, rng, shape, dtype)
        if not core:
            if self.low is None:
                return normal(rng, shape, dtype, 0.5)
            hiding = additive(self.flags, rng, shape, dtype, self.low)
            return hiding if not self.spread else hiding + normal(rng, shape, dtype, self.spread)
        if self.constant is not None:
            return np.full(shape, self.constant, dtype)
        # inputs of one shape get equal numbers where they are to coincide
        source = np.random.default_rng([97, len(shape), *shape]) if self.coinciding else rng
        return normal(source, shape, dtype, self.scale)


# the square root on every operand makes the scores 30 times as large, whether q and k are one input or two
_LARGE = 30.0**0.5

_CASES = (
    _Case("normal"),
    _Case("large", flags="all true", scale=_LARGE),
    _Case("zeros", flags="all true", constant=0.0),
    _Case("constant", constant=1.0),
    _Case("coinciding inputs", flags="all true", coinciding=True),
    _Case("left padding", flags="left padding", low=-np.inf),
    _Case("right padding", flags="right padding", low=-1e4),
    _Case("random mask", low=-np.inf),
    _Case("a row all false", flags="a row all false", low=-np.inf),
    _Case("a row all false, finite", flags="a row all false", low=-1e4),
    _Case("a row all true", flags="a row all true", low=0.0),
    # keys may lie along any axis of a mask: this leaves rows empty wherever they are
    _Case("all false", flags="all false", low=-np.inf),
    _Case("all false, a small bias", flags="all false"),
    _Case("random mask, a small bias", low=-np.inf, spread=0.5),
)


def _shape(value: Value) -> tuple[Size, ...]:
    if value.shape is None or value.dtype is None:
        raise ValueError(
            f"input {value.name} has dtype {value.dtype} and shape {value.shape}; both must be known"
        )
    return value.shape


def _same(a: Arrays, b: Arrays) -> bool:
    return all(np.array_equal(a[n], b[n]) for n in a)
