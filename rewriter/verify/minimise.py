"""The smallest set that passes a test: all sets of growing size where they are few, else delta debugging."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import comb
from typing import Literal

__all__ = ["Guarantee", "Minimum", "Trial", "minimum"]

Guarantee = Literal["smallest", "1-minimal", "none"]
"""``smallest``: no smaller set passes, all were tried. ``1-minimal``: none of its members can be left out."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One set that was tried.

    Parameters
    ----------
    ok
        Whether it passes.
    score
        How far from passing it is; 0 if it passes. Only compared with others.
    """

    ok: bool
    score: float


@dataclass(frozen=True, slots=True)
class Minimum:
    """What was found.

    Parameters
    ----------
    members
        The set, in the order of the candidates; None if not even all of them together pass.
    guarantee
        What is known of it.
    """

    members: tuple[str, ...] | None
    guarantee: Guarantee


Try = Callable[[frozenset[str]], Trial]


def minimum(candidates: Sequence[str], attempt: Try, *, exhaustive: int = 256) -> Minimum:
    """Return a smallest subset of the candidates that passes.

    Sets of one member are tried first, then of two, …, as long as no more than ``exhaustive`` sets are
    tried in all. After that, candidates are added in the order of how much each one alone helps until the set
    passes, and what it does not need is removed again by delta debugging.

    Parameters
    ----------
    candidates
        The most suspicious first.
    attempt
        Tries a set; it need not be monotone.
    exhaustive
        Sets that may be tried before delta debugging begins.

    References
    ----------
    Zeller and Hildebrandt, Simplifying and Isolating Failure-Inducing Input, IEEE Transactions on Software
    Engineering 28(2), 2002: the algorithm ``ddmin`` and 1-minimality (definition 10).

    Examples
    --------
    >>> needed = {"b", "d"}
    >>> minimum("abcde", lambda s: Trial(needed <= s, len(needed - s)))
    Minimum(members=('b', 'd'), guarantee='smallest')
    """

    def chosen(members: frozenset[str], guarantee: Guarantee) -> Minimum:
        return Minimum(tuple(c for c in candidates if c in members), guarantee)

    if attempt(frozenset()).ok:
        return Minimum((), "smallest")
    if not attempt(frozenset(candidates)).ok:
        return Minimum(None, "none")
    order = list(candidates)
    for members in _small_sets(order, attempt, exhaustive):
        if members is not None:
            return chosen(members, "smallest")
    return chosen(_reduced(_prefix(order, attempt), attempt), "1-minimal")


def _small_sets(order: list[str], attempt: Try, exhaustive: int) -> Iterator[frozenset[str] | None]:
    """Try all sets of one size after the other; after those of one member, ``order`` is by their scores."""
    spent = 0
    for size in range(1, len(order)):
        spent += comb(len(order), size)
        if spent > exhaustive and size > 1:
            return
        scores: dict[str, float] = {}
        for members in map(frozenset, _by_rank(order, size)):
            trial = attempt(members)
            yield members if trial.ok else None
            if size == 1:
                scores.update(dict.fromkeys(members, trial.score))
        order.sort(key=lambda c: scores.get(c, 0.0))
    if spent <= exhaustive:
        yield frozenset(order)


def _by_rank(order: Sequence[str], size: int) -> list[tuple[str, ...]]:
    """Return all sets of one size, those of the first candidates first."""
    ranks = sorted(combinations(range(len(order)), size), key=sum)
    return [tuple(order[k] for k in members) for members in ranks]


def _prefix(order: Sequence[str], attempt: Try) -> list[str]:
    """Return the first so many candidates, doubled until they pass; all of them do."""
    count = 1
    while count < len(order) and not attempt(frozenset(order[:count])).ok:
        count *= 2
    return list(order[:count])


def _reduced(members: list[str], attempt: Try) -> frozenset[str]:
    """Return a 1-minimal subset of a set that passes."""
    parts = 2
    while len(members) > 1:
        edges = [len(members) * k // parts for k in range(parts + 1)]
        blocks = [members[a:b] for a, b in pairwise(edges)]
        rests = [[m for m in members if m not in block] for block in blocks]
        tried = [*((block, 2) for block in blocks), *((rest, max(parts - 1, 2)) for rest in rests)]
        found = next((t for t in tried if 0 < len(t[0]) < len(members) and attempt(frozenset(t[0])).ok), None)
        if found is not None:
            members, parts = found
        elif parts == len(members):
            break
        else:
            parts = min(2 * parts, len(members))
    return frozenset(members)
