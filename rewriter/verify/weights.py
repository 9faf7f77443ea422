"""Attention weights of a site on recorded values, by the definition of its form, and how they look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from rewriter.forms import Form
from rewriter.program.program import Arrays, Program
from rewriter.sites.site import AttentionSite
from rewriter.verify.attention_statistics import (
    AttentionStatistics,
    effective_rank,
    entropy,
    mean_distance,
    sink_mass,
    top_mass,
)
from rewriter.verify.reference import LARGEST, Reference, scores_of

if TYPE_CHECKING:
    import torch

    from rewriter.kernels.softmax.definition import Operands

__all__ = ["StatisticsTally", "Weights", "as_it_is", "shrunk", "site_weights"]

ROWS = 256
"""Queries that weights are computed for; of a longer sequence that many, in blocks over all of it."""

BLOCKS = 8

SEQUENCES = 2
"""Sequences of a batch that weights are computed for."""

SIDE = 32
"""Rows and columns of a map that is to be looked at."""

NAMES = ("entropy", "sink_mass", "mean_distance", "effective_rank", "top_mass")


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights of some queries of a site.

    Parameters
    ----------
    values
        ``[batch, heads, rows, keys]`` in float32.
    queries, keys
        Positions ``[rows, axes]`` and ``[keys, axes]``, as for `mean_distance`.
    """

    values: np.ndarray
    queries: np.ndarray
    keys: np.ndarray


def as_it_is(site: AttentionSite) -> Form:
    """Return the form that a site has before it is rewritten."""
    from rewriter.kernels.reassociated.form import Reassociated
    from rewriter.kernels.softmax.form import Softmax

    return Softmax() if site.normalizer == "softmax" else Reassociated()


def site_weights(program: Program, site: AttentionSite, arrays: Arrays, form: Form) -> Weights | None:
    """Return the weights that a form gives at a site: what it makes of the unit vectors as values.

    Every form is linear in the values, so these are its weights, negative ones included. Long sequences are
    sampled; None where a form needs all queries at once and there are too many.

    Parameters
    ----------
    program, site
        Where.
    arrays
        One per entry of ``site.inputs``.
    form
        Of the site; `as_it_is` for what the program computes.

    Raises
    ------
    rewriter.lower.errors.EmitError
        When the site is no function of queries, keys and values.
    """
    reference = Reference(program, site, arrays)
    if not form.rows_apart and scores_of(program, site, arrays) > LARGEST:
        return None
    queries = reference.size(site.queries)
    blocks: Sequence[tuple[int, int] | None] = _blocks(queries) if form.rows_apart else [None]
    parts = [_unit_weights(form, reference.operands(form, rows, "float32")) for rows in blocks]
    values = np.concatenate(parts, axis=2)
    rows = np.concatenate([np.arange(*_range(rows, queries)) for rows in blocks])
    if len(rows) > ROWS:
        chosen = np.linspace(0, len(rows) - 1, ROWS).astype(int)
        rows, values = rows[chosen], values[:, :, chosen]
    at_queries, at_keys = _positions(site, queries, values.shape[-1])
    return Weights(values, at_queries[rows], at_keys)


@dataclass
class StatisticsTally:
    """Pools statistics over inputs."""

    sums: dict[str, np.ndarray] = field(default_factory=dict)
    counts: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, w: Weights) -> None:
        """Add the weights of one input."""
        found = {
            "entropy": entropy(w.values),
            "sink_mass": sink_mass(w.values),
            "mean_distance": mean_distance(w.values, w.queries, w.keys),
            "effective_rank": effective_rank(w.values)[..., None],
            "top_mass": top_mass(w.values),
        }
        for name, x in found.items():
            known = np.isfinite(x)
            total, count = np.where(known, x, 0.0).sum(axis=(0, 2)), known.sum(axis=(0, 2))
            self.sums[name] = self.sums.get(name, 0.0) + total
            self.counts[name] = self.counts.get(name, 0) + count

    def statistics(self) -> AttentionStatistics | None:
        """Return the means, or None if nothing was added."""
        if not self.sums:
            return None
        with np.errstate(invalid="ignore"):
            means = {n: tuple((self.sums[n] / self.counts[n]).tolist()) for n in NAMES}
        return AttentionStatistics(**means)


def shrunk(weights: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Return at most ``side`` rows and columns: sums over blocks of keys, means over those of queries.

    A row keeps its sum, so that maps of any length look alike.
    """
    for axis in (0, 1):
        count = min(side, weights.shape[axis])
        edges = np.linspace(0, weights.shape[axis], count + 1).astype(int)
        sums = np.add.reduceat(weights, edges[:-1], axis=axis)
        weights = sums if axis else sums / np.diff(edges)[:, None]
    return weights


def _unit_weights(form: Form, x: Operands) -> np.ndarray:
    """Return ``[batch, heads, rows, keys]``, a block of columns at a time."""
    import torch

    x = _first(x)
    batch, groups, keys = x.k.shape[:3]
    width = max(1, LARGEST // (x.q.shape[1] * keys))
    unit = torch.eye(keys, dtype=x.q.dtype)
    parts = []
    for start in range(0, keys, width):
        columns = unit[:, start : start + width].expand(batch, groups, keys, -1)
        parts.append(form.definition(replace(x, v=columns)).to(torch.float32).numpy())
    return np.concatenate(parts, axis=3)


def _first(x: Operands) -> Operands:
    """Return the operands of the first sequences."""

    def cut(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor[:SEQUENCES]

    q, k, v, bias, sink = map(cut, (x.q, x.k, x.v, x.bias, x.sink))
    assert q is not None and k is not None and v is not None
    return replace(x, q=q, k=k, v=v, bias=bias, sink=sink)


def _blocks(queries: int) -> list[tuple[int, int]]:
    if queries <= ROWS:
        return [(0, queries)]
    count = ROWS // BLOCKS
    return [(int(start), count) for start in np.linspace(0, queries - count, BLOCKS).astype(int)]


def _range(rows: tuple[int, int] | None, queries: int) -> tuple[int, int]:
    return (0, queries) if rows is None else (rows[0], rows[0] + rows[1])


def _positions(site: AttentionSite, queries: int, keys: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where queries and keys are: on their grid, else in sequence; NaN where nothing is known."""
    grid = site.geometry.grid if site.geometry is not None else None
    sides = [n.known() for n in grid] if grid is not None and queries == keys else []
    known = [n for n in sides if n is not None]
    if known and len(known) == len(sides):
        places = np.indices(known).reshape(len(known), -1).T.astype(float)
        if len(places) <= keys:
            blank = np.full((keys - len(places), len(known)), np.nan)
            at = np.concatenate([blank, places])
            return at, at
    line = np.arange(keys, dtype=float)[:, None]
    if queries == keys:
        return line, line
    band = site.facts.band
    offset = band.offset.known() if band is not None else None
    start = np.nan if band is None else offset if offset is not None else keys - queries
    return np.arange(queries, dtype=float)[:, None] + start, line
