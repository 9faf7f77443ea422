"""What a site and a form should give, in float64: all of it, or a few blocks of queries where it is large."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

import rewriter.sites.oracle
from rewriter.algebra.dimensions import Dimensions
from rewriter.algebra.evaluate import bind, evaluate
from rewriter.algebra.prims import Prim, leaf
from rewriter.algebra.sizes import ONE, Size
from rewriter.forms import Canonical, Form
from rewriter.lower.canonical import emit_site, inputs_of
from rewriter.lower.emitter import Emitter, Handle
from rewriter.lower.prim_emitter import PrimEmitter
from rewriter.program.program import Arrays, Program
from rewriter.program.tensors import to_torch
from rewriter.sites.site import AttentionSite, Band
from rewriter.verify.noise import perturbed

if TYPE_CHECKING:
    from rewriter.kernels.softmax.definition import Operands

__all__ = ["LARGEST", "Reference", "scores_of"]

LARGEST = 1 << 23
"""Scores up to which a site is evaluated in full; of a larger one, so many rows that they have as many."""

LEAST_ROWS = 3
"""Queries that are evaluated however long a row is."""


@dataclass(frozen=True)
class Reference:
    """Float64 values of one site on given inputs, flattened.

    A large site is evaluated for its first queries, some in the middle and the last, and its formula
    stands for the graph.

    Parameters
    ----------
    program, site
        Where.
    arrays
        One per entry of ``site.inputs``.
    """

    program: Program
    site: AttentionSite
    arrays: Arrays

    @property
    def scores(self) -> int:
        """How many scores an evaluation takes."""
        whole, queries = scores_of(self.program, self.site, self.arrays), self._queries
        return whole if self.blocks is None else whole // queries * sum(count for _, count in self.blocks)

    @cached_property
    def blocks(self) -> tuple[tuple[int, int], ...] | None:
        """First query and number of queries of what is evaluated, or None for everything."""
        whole, queries = scores_of(self.program, self.site, self.arrays), self._queries
        if whole <= LARGEST:
            return None
        count = max(1, max(LEAST_ROWS, LARGEST * queries // whole) // 3)
        return (0, count), ((queries - count) // 2, count), (queries - count, count)

    def site_value(self) -> np.ndarray:
        """Return what the graph computes."""
        if self.blocks is None:
            return rewriter.sites.oracle.exact(self.program, self.site, self.arrays).ravel()
        from rewriter.kernels.reassociated.form import Reassociated
        from rewriter.kernels.softmax.form import Softmax

        return self.form_value(Softmax() if self.site.normalizer == "softmax" else Reassociated())

    def form_value(
        self, form: Form, dtype: str = "float64", times: float = 1.0, moved: bool = False
    ) -> np.ndarray:
        """Return what a form's definition gives; only the definition itself runs in ``dtype``.

        Operands are read and the bias is evaluated in float64, independently of any target's emitter. The
        values are multiplied by ``times`` first; the last bits of queries and keys are ``moved``, up or down.
        """

        def compute(e: Emitter, a: Canonical, value: np.ndarray) -> None:
            a = form.adapt(a)
            if times != 1:
                a = replace(a, v=e.map("mul", a.v, e.constant(times, "float64")))
            if self.blocks is None or not form.rows_apart:
                value[:] = self._defined(form, a, dtype, moved)
                return
            for start, count in self.blocks:
                part = _rows(e, a, start, count)
                value[:, :, start : start + count] = self._defined(form, part, dtype, moved)

        return self._native(compute)[self._known]

    def of(self, output: np.ndarray) -> np.ndarray:
        """Return the part of a native output that the values stand for."""
        return output.ravel()[self._known]

    @cached_property
    def _known(self) -> np.ndarray | slice:
        def mark(e: Emitter, a: Canonical, value: np.ndarray) -> None:
            for start, count in self.blocks or ():
                value[:, :, start : start + count] = 1

        return slice(None) if self.blocks is None else self._native(mark) != 0

    @cached_property
    def _given(self) -> dict[str, np.ndarray]:
        return {name: self.arrays[name] for name in inputs_of(self.site)}

    @cached_property
    def _handles(self) -> dict[str, Prim]:
        prims = self.program.prims()
        return {n: leaf("operand", prims[n].shape, prims[n].dtype, n) for n in inputs_of(self.site)}

    @cached_property
    def _sizes(self) -> dict[str, int]:
        return bind(self._handles.values(), self._given)

    def size(self, size: Size) -> int:
        """Return the number that a size of the site is."""
        return _dimensions(self.program, self.site, self.arrays).require(size, self.site.id)

    @property
    def _queries(self) -> int:
        return self.size(self.site.queries)

    def operands(self, form: Form, rows: tuple[int, int] | None = None, dtype: str = "float64") -> Operands:
        """Return what a form's definition computes the site from.

        Parameters
        ----------
        form
            Which may adapt the operands to itself.
        rows
            The first query and how many there are; all by default. They keep their positions.
        dtype
            Of the tensors.
        """
        found: list[Operands] = []

        def compute(e: Emitter, a: Canonical, value: np.ndarray) -> None:
            a = form.adapt(a)
            found.append(self._read(a if rows is None else _rows(e, a, *rows), dtype))

        self._native(compute)
        return found[0]

    def _defined(self, form: Form, a: Canonical, dtype: str, moved: bool) -> np.ndarray:
        x = self._read(a, dtype)
        if moved:
            rng = np.random.default_rng(0)
            q, k = (to_torch(perturbed(t.numpy(), rng)) for t in (x.q, x.k))
            x = replace(x, q=q, k=k)
        result: np.ndarray = form.definition(x).numpy()
        return result

    def _read(self, a: Canonical, dtype: str) -> Operands:
        from rewriter.kernels.softmax.definition import Operands

        names = [name for name in ("q", "k", "v", "bias", "sink") if getattr(a, name) is not None]
        parts: list[Prim] = [getattr(a, name) for name in names]
        found = evaluate(parts, self._given, self._sizes)
        tensors: dict[str, Any] = {
            name: to_torch(x.astype(dtype)) for name, x in zip(names, found, strict=True)
        }
        band = a.band and replace(a.band, offset=a.band.offset.substitute(self._sizes))
        settings = {name: getattr(a, name) for name in ("scale", "softcap", "normalizer", "shift")}
        return Operands(**tensors, **settings, band=band)

    def _native(self, fill: Callable[[Emitter, Canonical, np.ndarray], None]) -> np.ndarray:
        """Return ``[B, H, I, E]`` that ``fill`` writes, in the layout of the native output, flattened."""
        outputs: dict[str, np.ndarray] = {}

        def compute(e: Emitter, a: Canonical) -> Handle:
            shape = tuple(a.shape[letter] for letter in "BHIE")
            known = _dimensions(self.program, self.site, self.arrays)
            outputs["value"] = np.zeros([known.require(n, self.site.id) for n in shape])
            fill(e, a, outputs["value"])
            return leaf("value", shape, "float64", "value")

        site = replace(self.site, dtype="float64")
        result = emit_site(site, PrimEmitter(), self._handles, compute)
        (found,) = evaluate([result], {**self._given, **outputs}, self._sizes)
        return found.ravel()


def scores_of(program: Program, site: AttentionSite, arrays: Arrays) -> int:
    """Return how many scores a site has on given inputs."""
    sizes = _dimensions(program, site, arrays)
    return math.prod(sizes.require(n, site.id) for n in (site.batch, site.heads, site.queries, site.keys))


def _dimensions(program: Program, site: AttentionSite, arrays: Arrays) -> Dimensions:
    sizes = Dimensions()
    sizes.match([(n, program.prims()[n].shape, np.shape(arrays[n])) for n in site.inputs])
    return sizes


def _rows(e: Emitter, a: Canonical, start: int, count: int) -> Canonical:
    """Return the operands of some of the queries, which keep their positions."""
    band = a.band or Band(Size.of(0), None, None)

    def rows(x: Handle | None) -> Handle | None:
        return x if x is None or e.shape(x)[2] == ONE else e.slice(x, 2, start, count)

    return replace(
        a,
        q=e.slice(a.q, 2, start, count),
        bias=rows(a.bias),
        sink=rows(a.sink),
        band=replace(band, offset=band.offset + start),
        shape={**a.shape, "I": Size.of(count)},
    )
