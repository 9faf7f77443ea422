"""What happened at each site of two models on the same inputs: errors by head, and what explains them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rewriter.verify.attention_statistics import AttentionStatistics
from rewriter.verify.distance import Distance

__all__ = ["AttentionMap", "PerSite", "SiteError", "SiteRecord", "StretchRecord"]

JUMP = 16.0
"""Times that an error grows from one site to the next by more than rounding."""

LEAST = 1e-6
"""Relative error that rounding alone makes in single precision."""


@dataclass(frozen=True, slots=True)
class SiteError:
    """How far the result of a site is from that of the original, pooled over inputs.

    Parameters
    ----------
    distance
        All measures.
    heads
        ``‖new - original‖₂ / ‖original‖₂`` of each head; empty where the layout of the result is not known.
    """

    distance: Distance
    heads: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {**self.distance.to_dict(), "heads": self.heads}


@dataclass(frozen=True, slots=True, eq=False)
class AttentionMap:
    """Weights of one head on the first input, for a picture.

    Parameters
    ----------
    head
        Which.
    before, after
        ``[rows, columns]``: weights of the original and of the rewritten model, means over blocks of queries
        and keys where there are many.
    """

    head: int
    before: np.ndarray
    after: np.ndarray


@dataclass(frozen=True, slots=True)
class SiteRecord:
    """One site in both models.

    Parameters
    ----------
    site, kind
        Of the original.
    output
        The value that holds the site's result, in the original.
    form, fidelity
        What the rewritten model says it did; None where it says nothing.
    paired_by
        How the site was found in the rewritten model: ``"notes"``, ``"name"`` or ``"order"``; None if it was
        not found.
    local
        Error of the site alone: fed what flows into the site in the original. None with the reason in
        ``note``.
    accumulated
        Error as it runs, after everything before it.
    operands
        ``‖new - original‖₂ / ‖original‖₂`` of queries, keys and values as they run: ``q``, ``k``, ``v``.
    error, tolerance
        Largest error of the site alone against float64, and what it may be: of the original's own function
        where the rewritten model says that it is exact or says nothing, else of the form that it names. None
        where it was not derived.
    ok
        Whether that error is one of rounding; None where it is not known.
    before, after
        Statistics of the attention weights as each model runs; None where there are no weights.
    maps
        Weights of the head with the largest error.
    note
        What is missing, and why.
    """

    site: str
    kind: str
    output: str
    form: str | None = None
    fidelity: str | None = None
    paired_by: str | None = None
    local: SiteError | None = None
    accumulated: SiteError | None = None
    operands: Mapping[str, float] = field(default_factory=dict)
    error: float | None = None
    tolerance: float | None = None
    ok: bool | None = None
    before: AttentionStatistics | None = None
    after: AttentionStatistics | None = None
    maps: tuple[AttentionMap, ...] = ()
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the maps as plain values."""
        return {
            "site": self.site,
            "kind": self.kind,
            "output": self.output,
            "form": self.form,
            "fidelity": self.fidelity,
            "paired_by": self.paired_by,
            "local": self.local and self.local.to_dict(),
            "accumulated": self.accumulated and self.accumulated.to_dict(),
            "operands": dict(self.operands),
            "error": self.error,
            "tolerance": self.tolerance,
            "ok": self.ok,
            "before": self.before and self.before.to_dict(),
            "after": self.after and self.after.to_dict(),
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class StretchRecord:
    """What lies between two sites: projections, normalisation, feed-forward layers.

    Parameters
    ----------
    after, before
        Ids of the sites around it; None at the ends of the model.
    distance
        Largest error of what it computes, fed the original's values; None where the two models name what
        flows through it differently.
    tolerance
        What ``distance.max_abs`` may be by rounding alone.
    ok
        Whether the error is one of rounding; None where it is not known.
    value
        The first value whose error is not, if there is one.
    near
        Id of the site that it is nearest to.
    """

    after: str | None
    before: str | None
    distance: Distance | None = None
    tolerance: float | None = None
    ok: bool | None = None
    value: str | None = None
    near: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "after": self.after,
            "before": self.before,
            "distance": self.distance and self.distance.to_dict(),
            "tolerance": self.tolerance,
            "ok": self.ok,
            "value": self.value,
            "near": self.near,
        }


@dataclass(frozen=True, slots=True)
class PerSite:
    """Every site of the original, in the order of the graph, and what lies between them.

    Parameters
    ----------
    sites
        One record per site.
    stretches
        One more than there are sites that were paired; empty where the models could not be cut there.
    pairing
        How sites were paired, in a sentence.
    cases
        Inputs that everything was measured on.
    chosen
        Whether the maps are of heads that somebody chose; else of the worst head of every site.
    """

    sites: tuple[SiteRecord, ...]
    stretches: tuple[StretchRecord, ...] = ()
    pairing: str = ""
    cases: int = 0
    chosen: bool = False

    @property
    def blamed(self) -> tuple[str, ...]:
        """Sites that do not compute what they should, or that a fault between sites is nearest to.

        The worst comes first. Where the stretches could not be compared, and no site is at fault itself, it
        is the first one that is given something else than in the original, `JUMP` times as far off as
        anything before it; after the site before it, if all of queries, keys and values are.
        """
        worst: dict[str, float] = {}
        for record in self.sites:
            if record.ok is False:
                worst[record.site] = _excess(record.error, record.tolerance)
        for stretch in self.stretches:
            if stretch.ok is False and stretch.near is not None:
                error = stretch.distance.max_abs if stretch.distance is not None else None
                found = _excess(error, stretch.tolerance)
                worst[stretch.near] = max(found, worst.get(stretch.near, 0.0))
        if not worst and not any(stretch.ok is not None for stretch in self.stretches):
            return self._first_given_another()
        return tuple(sorted(worst, key=lambda site: -worst[site]))

    def _first_given_another(self) -> tuple[str, ...]:
        if any(s.fidelity not in (None, "exact") for s in self.sites):
            return ()
        before, last = LEAST, tuple[str, ...]()
        for record in self.sites:
            given = max(record.operands.values(), default=0.0)
            if given > JUMP * before:
                # what all operands share is made of the result of the site before, too
                shared = min(record.operands.values()) > JUMP * before
                return (*(last if shared else ()), record.site)
            last = (record.site,)
            before = max(before, given, record.accumulated.distance.rel if record.accumulated else 0.0)
        return ()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "pairing": self.pairing,
            "cases": self.cases,
            "blamed": list(self.blamed),
            "sites": [s.to_dict() for s in self.sites],
            "stretches": [s.to_dict() for s in self.stretches],
        }


def _excess(error: float | None, tolerance: float | None) -> float:
    if error is None or tolerance is None:
        return math.inf
    return error / tolerance if tolerance else math.inf
