"""Running two programs, and what they came from, on one input, and measuring every output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rewriter.errors import InputError
from rewriter.program.program import Arrays, Program
from rewriter.verify.distance import Tally
from rewriter.verify.finding import Finding, OutputFinding
from rewriter.verify.inputs import Case, mask_inputs
from rewriter.verify.metrics import Element, is_floating, worst_element
from rewriter.verify.noise import floor
from rewriter.verify.padding import Padding, hidden_share
from rewriter.verify.running import RunError, run, run_positional
from rewriter.verify.signature import Match, Matching, match_signatures

__all__ = ["MOST_DIFFERENT", "Comparison"]

MOST_DIFFERENT = 1000
"""Positions of integers that differ which are remembered; more are no last bits."""


@dataclass
class Comparison:
    """Two programs, perhaps a third, and which output of one is which of the other.

    Parameters
    ----------
    original, rewritten
        What is compared.
    matching
        Their inputs and outputs.
    padding
        Which positions count.
    source
        What the original was captured from, with its own matching to the original; or None.
    """

    original: Program
    rewritten: Program
    matching: Matching
    padding: Padding
    source: tuple[Program, Matching] | None = None

    @classmethod
    def of(
        cls,
        original: Program,
        rewritten: Program,
        source: Program | None,
        match: Match | None,
        masks: Sequence[str],
    ) -> Comparison:
        """Match everything with everything.

        Raises
        ------
        InputError
            When signatures or masks do not fit.
        """
        third = (source, match_signatures(original, source)) if source is not None else None
        matching = match_signatures(original, rewritten, match)
        return cls(original, rewritten, matching, Padding(original.graph, tuple(masks)), third)

    def find(self, case: Case) -> tuple[Finding, list[np.ndarray] | None]:
        """Run everything on one input; return what was found, and the outputs of the original that count.

        Raises
        ------
        InputError
            When the original cannot run data that was given, or the source an input that the original can.
        """
        head = (case.name, case.group, dict(case.sizes))
        try:
            expected = self.run_original(case.inputs)
        except RunError as error:
            if case.group == "data":
                raise InputError(f"data {case.name}: {error}") from error
            return Finding(*head, error=f"skipped: {error}", skipped=True), None
        try:
            actual = self.run_rewritten(case.inputs)
        except RunError as error:
            return Finding(*head, error=str(error)), expected
        names = self.names
        for name, x, y in zip(names, expected, actual, strict=True):
            if x.shape != y.shape:
                error_ = f"output {name!r} has shape {x.shape} in the original, {y.shape} in the other"
                return Finding(*head, error=error_), expected
        legs = self._legs(case.inputs, expected, actual)
        kept = [self._counted(case.inputs, k, x) for k, x in enumerate(expected)]
        outputs = tuple(_output(*row) for row in zip(names, expected, actual, legs, kept, strict=True))
        hidden = self._hidden(case) if case.group == "data" else {}
        return Finding(*head, outputs=outputs, hidden=hidden), expected

    def run_original(self, inputs: Arrays) -> list[np.ndarray]:
        """Return the outputs of the original that count.

        Raises
        ------
        RunError
            When it cannot be run.
        """
        return self.counting(run(self.original, inputs))

    def counting(self, outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return those of the original's outputs that count."""
        return [outputs[at] for at, _ in self.matching.outputs]

    def positions(self, inputs: Arrays, output: int, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return arrays of one output (its place among those that count) without the hidden positions."""
        keep = self._counted(inputs, output, arrays[0])
        return arrays if keep is None else tuple(x[keep] for x in arrays)

    @property
    def names(self) -> list[str]:
        """Outputs that count, as the original calls them."""
        return [self.original.output_names[at] for at, _ in self.matching.outputs]

    def run_rewritten(self, inputs: Arrays) -> list[np.ndarray]:
        """Return the outputs of the rewritten model that count, for inputs of the original.

        Raises
        ------
        RunError
            When it cannot be run.
        """
        outputs = run_positional(self.rewritten, self.matching.given(inputs))
        return [outputs[at] for _, at in self.matching.outputs]

    def _legs(
        self, inputs: Arrays, expected: Sequence[np.ndarray], actual: Sequence[np.ndarray]
    ) -> list[tuple[tuple[np.ndarray, np.ndarray], ...]]:
        """Return for each output the pairs source and original, source and rewritten."""
        if self.source is None:
            return [()] * len(expected)
        source, matching = self.source
        try:
            found = run_positional(source, matching.given(inputs))
        except RunError as error:
            raise InputError(f"the source cannot be run where the original can: {error}") from error
        by_original = dict(matching.outputs)
        truth = [found[by_original[at]] for at, _ in self.matching.outputs]
        for name, x, y in zip(self.names, truth, expected, strict=True):
            if x.shape != y.shape:
                raise InputError(
                    f"output {name!r} has shape {x.shape} in the source, {y.shape} in the original"
                )
        return [((t, x), (t, y)) for t, x, y in zip(truth, expected, actual, strict=True)]

    def _counted(self, inputs: Arrays, output: int, array: np.ndarray) -> np.ndarray | None:
        """Return where an output (its place among those that count) counts, or None for everywhere."""
        at, _ = self.matching.outputs[output]
        return self.padding.counted(inputs, self.original.graph.outputs[at], array.shape)

    def _hidden(self, case: Case) -> dict[str, float]:
        flags = (name for name in self._masks if np.isin(case.inputs[name], (0, 1)).all())
        return {name: hidden_share(case.inputs[name]) for name in flags}

    @cached_property
    def _masks(self) -> tuple[str, ...]:
        return mask_inputs(self.original)


def _output(
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    legs: Sequence[tuple[np.ndarray, np.ndarray]],
    keep: np.ndarray | None,
) -> OutputFinding:
    worst, masked = _worst(x, y, keep), keep is not None
    pairs = [(x, y), *legs]
    if keep is not None:
        pairs = [(a[keep], b[keep]) for a, b in pairs]
    x, y = pairs[0]
    if not is_floating(x.dtype):
        differ = np.flatnonzero(x != y)
        positions = tuple(map(int, differ[:MOST_DIFFERENT]))
        equal = x.size - differ.size
        return OutputFinding(name, None, equal, x.size, positions, worst=worst, masked=masked)
    tallies = []
    for a, b in pairs:
        tallies.append(Tally())
        tallies[-1].add(a, b)
    finite = np.abs(x[np.isfinite(x)])
    return OutputFinding(
        name,
        tallies[0],
        floor=floor(x, x.dtype),
        peak=float(finite.max(initial=0)),
        worst=worst,
        masked=masked,
        legs=tuple(tallies[1:]),
    )


def _worst(x: np.ndarray, y: np.ndarray, keep: np.ndarray | None) -> Element | None:
    """Return the worst element among those that count, with its index in the whole output."""
    if keep is None:
        return worst_element(x, y)
    seen = keep.reshape(keep.shape + (1,) * (x.ndim - keep.ndim))
    return worst_element(x, np.where(seen, y, x))
