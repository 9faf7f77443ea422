"""Normalisation by fixed statistics as part of weights: of a projection before it, of a convolution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rewriter.algebra.frontends.convolutions import BatchNorm, batch_norm
from rewriter.algebra.index import fresh
from rewriter.algebra.prims import Constant, Map, Prim
from rewriter.algebra.term import Read, source
from rewriter.program.program import Program
from rewriter.rules.packed import why_held_twice
from rewriter.rules.projections import Projection, known, projection_of

__all__ = ["Normed", "by_channel", "constant", "normed"]


@dataclass(frozen=True)
class Normed:
    """A projection whose columns are normalised.

    Parameters
    ----------
    output
        The normalised value.
    projection
        What is normalised.
    views
        Between projection and norm, in order.
    weight, bias
        Of the projection that gives the normalised value, in float64: ``[in, out]`` and ``[out]``.
    """

    output: str
    projection: Projection
    views: tuple[Prim, ...]
    weight: np.ndarray
    bias: np.ndarray


def normed(program: Program, value: str) -> Normed | None:
    """Return a value as a normalised projection that nothing else reads, or None."""
    norm = batch_norm(program.graph, value)
    factors = None if norm is None else by_channel(program, norm)
    prim = None if norm is None else program.prims().get(norm.x)
    if norm is None or factors is None or prim is None or len(prim.shape) < 2:
        return None
    index = fresh(prim.shape)
    steps = list(source(Read(prim, index)))
    at = next((k for k, step in enumerate(steps) if projection_of(step.prim, whole=False)), None)
    if at is None or steps[at].index[-1] != index[1]:
        return None
    projection = projection_of(steps[at].prim, whole=False)
    views = tuple(step.prim for step in reversed(steps[:at]))
    if projection is None or projection.dtype != prim.dtype or not _alone(program, projection, views):
        return None
    scale, shift = factors
    bias = 0.0 if projection.bias is None else known(projection.bias).astype(np.float64)
    weight = known(projection.weight).astype(np.float64)
    return Normed(value, projection, views, weight * scale, bias * scale + shift)


def _alone(program: Program, projection: Projection, views: tuple[Prim, ...]) -> bool:
    graph = program.graph
    between = [projection.output, *(p.value for p in views if p.value is not None)]
    read = all(len(graph.readers(v)) == 1 and v not in graph.ends for v in between)
    return read and why_held_twice(program, projection) is None


def by_channel(program: Program, norm: BatchNorm) -> tuple[np.ndarray, np.ndarray] | None:
    """Return what a norm multiplies each channel by and then adds, in float64; None if it is not fixed."""
    mean, variance = constant(program, norm.mean), constant(program, norm.variance)
    if mean is None or variance is None:
        return None
    weight = np.ones_like(mean) if norm.weight is None else constant(program, norm.weight)
    bias = np.zeros_like(mean) if norm.bias is None else constant(program, norm.bias)
    if weight is None or bias is None:
        return None
    scale = weight / np.sqrt(variance + norm.eps)
    return scale, bias - mean * scale


def constant(program: Program, name: str) -> np.ndarray | None:
    """Return a known value in float64, or None."""
    prim = program.prims().get(name)
    while prim is not None and prim.form == Map("identity"):
        (prim,) = prim.inputs
    if prim is None or not isinstance(prim.form, Constant):
        return None
    return np.asarray(prim.form.load()).astype(np.float64)
