"""What is gathered about a stretch between two sites while inputs go by."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rewriter.program.graph import Graph
from rewriter.program.program import Arrays, Program
from rewriter.verify.distance import distance
from rewriter.verify.metrics import is_floating, max_abs, pattern_mismatches
from rewriter.verify.noise import MODEL_FACTOR, floor, perturbed
from rewriter.verify.pairing import SitePair
from rewriter.verify.per_site import StretchRecord
from rewriter.verify.stages import Stage, failures

__all__ = ["StretchTally"]

SEEDS = 2
"""Perturbations that a response to last bits is measured with."""


@dataclass(frozen=True)
class _Error:
    """How far one value is from the original's."""

    value: str
    before: np.ndarray
    after: np.ndarray
    error: float
    tolerance: float
    same: bool

    @property
    def ok(self) -> bool:
        return self.same and self.error <= self.tolerance

    @property
    def excess(self) -> float:
        if not self.same:
            return np.inf
        return self.error / self.tolerance if self.tolerance else self.error and np.inf


class StretchTally:
    """Gathers the record of one stretch.

    Parameters
    ----------
    original
        The first model.
    stage
        The stretch in the second one.
    after, before
        The sites around it; None at the ends.
    seed
        Of the perturbations.
    """

    def __init__(
        self, original: Program, stage: Stage, after: SitePair | None, before: SitePair | None, seed: int
    ) -> None:
        self._original, self._stage, self._seed = original, stage, seed
        self._after, self._before = after, before
        self._worst: _Error | None = None
        self._value: str | None = None
        self._usable = True

    def add(self, given: Arrays, expected: Arrays, theirs: Arrays, found: Arrays) -> None:
        """Add one input.

        Parameters
        ----------
        given, expected
            Values of the original before and after the stretch.
        theirs, found
            What the stretch read and wrote in the second model as it ran.
        """
        if not self._usable or any(name not in given for name in self._stage.reads):
            self._usable = False
            return
        fed = {name: given[name] for name in self._stage.reads}
        try:
            found = found if _equal(fed, theirs) else self._stage(fed)
            errors = self._errors({n: expected[n] for n in found if n in expected}, found, given)
        except failures():
            self._usable = False
            return
        worst = max(errors, key=lambda e: e.excess, default=None)
        if worst is None:
            return
        if self._worst is None or worst.excess > self._worst.excess:
            self._worst = worst
        if not worst.ok and self._value is None:
            self._value = self._first_wrong(given, fed) or worst.value

    def _errors(self, expected: Arrays, found: Arrays, given: Arrays) -> list[_Error]:
        """Hold values to the original's; what is not rounding at first sight to its response to last bits."""
        errors = [_error(name, x, found[name]) for name, x in expected.items()]
        doubtful = [e.value for e in errors if e.same and not e.ok]
        moved = self._response(doubtful, expected, given) if doubtful else {}
        return [
            _Error(
                e.value, e.before, e.after, e.error, MODEL_FACTOR * max(moved[e.value], e.tolerance), e.same
            )
            if e.value in moved
            else e
            for e in errors
        ]

    def _response(self, names: Sequence[str], expected: Arrays, given: Arrays) -> dict[str, float]:
        """Return how much values of the original move when the last bits of what is given do."""
        reads = list(dict.fromkeys([*self._stage.reads, *self._original.graph.inputs]))
        run = self._original.extract(reads, names)
        worst = dict.fromkeys(names, 0.0)
        for seed in range(self._seed, self._seed + SEEDS):
            rng = np.random.default_rng(seed)
            moved = run({name: perturbed(np.asarray(given[name]), rng) for name in reads})
            for name, x in zip(names, moved, strict=True):
                worst[name] = max(worst[name], max_abs(expected[name], x))
        return worst

    def _first_wrong(self, given: Arrays, fed: Arrays) -> str | None:
        """Return the first value inside the stretch that is no rounding of the original's."""
        ours, theirs = self._original.graph, self._stage.program.graph
        inside = set(self._stage.nodes)
        names = [
            v for n in theirs.nodes if n.name in inside for v in n.outputs if _comparable(v, ours, theirs)
        ]
        if not names:
            return None
        reads = list(dict.fromkeys([*self._stage.reads, *ours.inputs]))
        try:
            before = self._original.extract(reads, names)({name: given[name] for name in reads})
            after = self._stage.program.extract(self._stage.reads, names)(fed)
            expected, found = (dict(zip(names, x, strict=True)) for x in (before, after))
            errors = self._errors(expected, found, given)
        except failures():
            return None
        return next((e.value for e in errors if not e.ok), None)

    def record(self) -> StretchRecord:
        """Return everything."""
        after, before = (p.site.id if p is not None else None for p in (self._after, self._before))
        if not self._usable or self._worst is None:
            return StretchRecord(after, before)
        worst = self._worst
        floating = is_floating(worst.before.dtype) and worst.before.shape == worst.after.shape
        return StretchRecord(
            after,
            before,
            distance(worst.before, worst.after) if floating else None,
            worst.tolerance,
            worst.ok,
            self._value,
            self._near(self._value) if self._value is not None else None,
        )

    def _near(self, value: str) -> str | None:
        """Return the site that a value is for, or is made of; else the one that is fewest nodes away."""
        graph = self._stage.program.graph
        inputs = set(self._before.inputs.values()) if self._before is not None else set()
        results = {self._after.output} if self._after is not None else set()
        serves = self._reached(value, forward=True, stop=inputs) <= inputs
        made = self._reached(value, forward=False, stop=results) <= results
        back = _steps(graph, results, {value})
        ahead = _steps(graph, [value], inputs) if inputs else None
        closer = ahead is not None and (back is None or ahead < back)
        if ahead is not None and (serves if serves != made else closer):
            return self._before.site.id if self._before is not None else None
        return self._after.site.id if self._after is not None and back is not None else None

    def _reached(self, value: str, *, forward: bool, stop: Collection[str]) -> set[str]:
        """Return where the ways from a value leave the stretch, or come into it; those of sizes are none."""
        graph, inside = self._stage.program.graph, set(self._stage.nodes)
        ends = {*(self._stage.writes if forward else self._stage.reads), *stop}
        stack, seen, found = [value], {value}, set[str]()
        while stack:
            name = stack.pop()
            if name in ends:
                found.add(name)
            if name in stop:
                continue
            if forward:
                nearby = [v for n in graph.readers(name) if n.name in inside for v in n.outputs]
            else:
                node = graph.producer(name)
                own = node.inputs if node is not None and node.name in inside else ()
                nearby = [v for v in own if v is not None]
            new = [v for v in nearby if v not in seen and not _counts(graph, v)]
            stack += new
            seen.update(new)
        return found


def _counts(graph: Graph, name: str) -> bool:
    known = graph.values.get(name)
    return known is not None and known.dtype in ("int32", "int64")


def _error(name: str, x: np.ndarray, y: np.ndarray) -> _Error:
    """Return the error of a value, held to a rounding of its own size."""
    x, y = np.asarray(x), np.asarray(y)
    if x.shape != y.shape or x.dtype != y.dtype:
        return _Error(name, x, y, np.inf, 0.0, False)
    if not is_floating(x.dtype):
        return _Error(name, x, y, 0.0, 0.0, bool(np.array_equal(x, y)))
    same = pattern_mismatches(x, y) == 0
    return _Error(name, x, y, max_abs(x, y), floor(x.astype(np.float64), x.dtype), same)


def _equal(a: Arrays, b: Arrays) -> bool:
    return all(name in b and np.array_equal(a[name], b[name]) for name in a)


def _comparable(name: str, a: Graph, b: Graph) -> bool:
    x, y = a.values.get(name), b.values.get(name)
    return x is not None and y is not None and x.dtype is not None and x.dtype == y.dtype


def _steps(graph: Graph, start: Iterable[str], goal: set[str]) -> int | None:
    """Return how many nodes lead from one of some values to one of others, or None if there is no way."""
    front, seen, steps = set(start), set(start), 0
    while front:
        if front & goal:
            return steps
        front = {v for name in front for n in graph.readers(name) for v in n.outputs} - seen
        seen |= front
        steps += 1
    return None
