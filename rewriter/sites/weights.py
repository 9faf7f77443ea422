"""Normalised weights, and normalisers that are none."""

from __future__ import annotations

from dataclasses import dataclass

from rewriter.algebra.index import Atom
from rewriter.algebra.prims import Prim
from rewriter.algebra.term import Term
from rewriter.sites.refusal import Stage

__all__ = ["NotWeights", "Weights"]


@dataclass(frozen=True)
class Weights:
    """Normalised weights over the contracted axis.

    Parameters
    ----------
    scores
        What is normalised, at the index of the weights.
    normaliser
        The tensor that the refusal or the report names.
    by
        ``softmax``, ``sum`` (a quotient by the sum over the keys) or ``softmax over queries``.
    sink
        A logit that takes part in the softmax and has no value.
    guarded
        A row without visible keys gives zeros: NaN weights are replaced by 0.
    guard
        The condition under which weights become 0, where it is not that they are NaN.
    changed
        The weights are changed by another function before they meet the values.
    matrix
        What mixes the weights of all heads.
    beside
        Other normalisers, of positions, that are mixed in.
    over
        What a softmax that is not over the keys runs over.
    """

    scores: Term
    normaliser: Prim
    by: str = "softmax"
    sink: Term | None = None
    guarded: bool = False
    guard: Term | None = None
    changed: bool = False
    matrix: Term | None = None
    beside: tuple[Prim, ...] = ()
    over: frozenset[Atom] = frozenset()


@dataclass(frozen=True)
class NotWeights:
    """A normaliser that does not fit, and why."""

    reason: str
    normaliser: Prim
    reached: Stage = "normaliser"
    """How far it got; ``scores``: some entries of a softmax, of which the others may meet other values."""
