"""The noise floor of an original, measured on some of the inputs that it is compared on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewriter.program.program import Arrays, Program
from rewriter.verify.comparison import Comparison
from rewriter.verify.distance import Tally
from rewriter.verify.finding import Finding
from rewriter.verify.noise import Response, perturbed_program, perturbed_run
from rewriter.verify.progress import Progress, silent
from rewriter.verify.resume import Record

__all__ = ["Floors", "Kept"]


@dataclass(frozen=True)
class Kept:
    """An input that the floor is measured on.

    Parameters
    ----------
    key
        Its name in a record of finished work.
    inputs
        By name.
    expected
        Outputs of the original that count, if they are known.
    """

    key: str
    inputs: Arrays
    expected: Sequence[np.ndarray] | None


@dataclass
class Floors:
    """Chooses inputs of every group, and measures how the original responds to last bits on them.

    Parameters
    ----------
    most
        Inputs of each group; inputs on which integers differ count apart.
    seeds
        One perturbation of the weights each.
    """

    most: int
    seeds: Sequence[int]

    def __post_init__(self) -> None:
        """Begin with none."""
        self.kept: dict[int, Kept] = {}
        self._counts: Counter[str] = Counter()

    def consider(self, at: int, finding: Finding, kept: Kept) -> None:
        """Keep an input if there are not enough of its kind."""
        if not finding.outputs:
            return
        kind = finding.group + (" integers" if any(o.differ for o in finding.outputs) else "")
        if self._counts[kind] < self.most:
            self._counts[kind] += 1
            self.kept[at] = kept

    def measure(
        self, comparison: Comparison, record: Record, progress: Progress = silent
    ) -> dict[int, list[Response]]:
        """Return for each kept input, for each output that counts, how it moves.

        Raises
        ------
        RunError
            When the original with its last bits moved cannot be run any more.
        """
        found: dict[int, list[Response]] = {}
        total = len(self.seeds) * len(self.kept)
        for turn, seed in enumerate(self.seeds):
            measured = _Turn(comparison, record, seed)
            for at, (case, kept) in enumerate(self.kept.items()):
                progress("noise floor", turn * len(self.kept) + at, total)
                moved = measured.responses(at, kept)
                for mine, new in zip(found.setdefault(case, [Response() for _ in moved]), moved, strict=True):
                    mine.tally.merge(new.tally)
                    mine.unstable |= new.unstable
        return found


class _Turn:
    """One perturbation of the weights, made when the first input is not in the record."""

    def __init__(self, comparison: Comparison, record: Record, seed: int) -> None:
        self._comparison, self._record, self._seed = comparison, record, seed
        self._moved: Program | None = None

    def responses(self, at: int, kept: Kept) -> list[Response]:
        name = f"noise {self._seed} {at} {kept.key}"
        known = self._record.get(name)
        if known is not None:
            try:
                return list(map(_restored, known))
            except (KeyError, TypeError, ValueError):
                raise self._record.damaged(name) from None
        comparison = self._comparison
        if self._moved is None:
            self._moved = perturbed_program(comparison.original, self._seed)
        expected = kept.expected if kept.expected is not None else comparison.run_original(kept.inputs)
        moved = comparison.counting(perturbed_run(self._moved, kept.inputs, self._seed, at))
        found = []
        for k, (x, y) in enumerate(zip(expected, moved, strict=True)):
            found.append(Response())
            pair = (x, y) if x.shape != y.shape else comparison.positions(kept.inputs, k, x, y)
            found[-1].add(*pair)
        self._record.put(name, [_state(r) for r in found])
        return found


def _state(response: Response) -> dict[str, Any]:
    return {"tally": response.tally.state(), "unstable": sorted(response.unstable)}


def _restored(state: Mapping[str, Any]) -> Response:
    return Response(Tally.restored(state["tally"]), set(map(int, state["unstable"])))
