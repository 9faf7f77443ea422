"""Values of a site carried over to its counterpart in another model, and back."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rewriter.algebra.dimensions import EvaluationError
from rewriter.errors import InputError
from rewriter.lower.errors import EmitError
from rewriter.program.program import Arrays, Program
from rewriter.sites.site import AttentionSite
from rewriter.verify.layouts import OperandLayout, ResultLayout, operand_layouts, result_layout
from rewriter.verify.pairing import SitePair

__all__ = ["Exchange", "exchange"]


class Exchange(ABC):
    """Carries what flows into and out of one site between two models, for inputs of one size."""

    @abstractmethod
    def forward(self, before: Arrays, after: Arrays) -> dict[str, np.ndarray]:
        """Return what the second model's site reads, with the operands of the original.

        Parameters
        ----------
        before, after
            Values of the original and of the second model, by their own names.
        """

    @abstractmethod
    def backward(self, after: Arrays) -> dict[str, np.ndarray]:
        """Return what the original's site reads of the second model, as far as it corresponds."""

    @abstractmethod
    def operands(self, before: Arrays, after: Arrays) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return what corresponds of the queries, keys and values of both, under ``q``, ``k``, ``v``."""

    @abstractmethod
    def renamed(self) -> dict[str, str] | None:
        """Return values of the original -> those of the other that hold the same, or None if none does."""

    @abstractmethod
    def result(self, after: np.ndarray) -> np.ndarray:
        """Return a result of the second model as the original lays it out."""

    @abstractmethod
    def result_back(self, before: np.ndarray) -> np.ndarray:
        """Return a result of the original as the second model lays it out."""


def exchange(
    original: Program, rewritten: Program, pair: SitePair, before: Arrays, after: Arrays
) -> Exchange:
    """Return how values are carried between the two sites of a pair.

    Parameters
    ----------
    original, rewritten, pair
        Two models and a site of them.
    before, after
        Values of either that flow into the site: their shapes decide the sizes.

    Raises
    ------
    InputError
        When they do not correspond: the reason in a sentence.
    """
    formula = pair.site.formula
    read = {x: operand.value for x in "qkv" if (operand := getattr(formula, x)) is not None}
    if pair.inputs or pair.twin is None:
        return _ByName(pair.inputs, read)
    try:
        return _by_layout(original, rewritten, pair.site, pair.twin, before, after)
    except (EmitError, EvaluationError) as error:
        raise InputError(f"the operands of {pair.site.id} do not correspond: {error}") from error


@dataclass(frozen=True)
class _ByName(Exchange):
    inputs: Mapping[str, str]
    read: Mapping[str, str]

    def forward(self, before: Arrays, after: Arrays) -> dict[str, np.ndarray]:
        return {**after, **{name: before[own] for own, name in self.inputs.items() if own in before}}

    def backward(self, after: Arrays) -> dict[str, np.ndarray]:
        return {own: after[name] for own, name in self.inputs.items() if name in after}

    def operands(self, before: Arrays, after: Arrays) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        theirs = self.backward(after)
        return {x: (before[name], theirs[name]) for x, name in self.read.items() if name in theirs}

    def renamed(self) -> dict[str, str] | None:
        return dict(self.inputs)

    def result(self, after: np.ndarray) -> np.ndarray:
        return after

    def result_back(self, before: np.ndarray) -> np.ndarray:
        return before


@dataclass(frozen=True, eq=False)
class _ByLayout(Exchange):
    """Queries, keys and values correspond number by number; whatever else is read stays each model's own."""

    before: Mapping[str, OperandLayout]
    after: Mapping[str, OperandLayout]
    factor: float
    result_before: ResultLayout
    result_after: ResultLayout

    def forward(self, before: Arrays, after: Arrays) -> dict[str, np.ndarray]:
        found = dict(after)
        for letter, layout in self.after.items():
            operand = self.before[letter].read(before[self.before[letter].value])
            if letter == "q":
                operand = _times(operand, self.factor)
            found[layout.value] = layout.write(found[layout.value], operand)
        return found

    def backward(self, after: Arrays) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for letter, layout in self.before.items():
            operand = self.after[letter].read(after[self.after[letter].value])
            if letter == "q":
                operand = _times(operand, 1 / self.factor)
            blank = found.get(layout.value, np.zeros(layout.shape, operand.dtype))
            found[layout.value] = layout.write(blank, operand)
        return found

    def operands(self, before: Arrays, after: Arrays) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        theirs = self.backward(after)
        return {x: (y.read(before[y.value]), y.read(theirs[y.value])) for x, y in self.before.items()}

    def renamed(self) -> dict[str, str] | None:
        pairs = [(self.before[letter], self.after[letter]) for letter in self.before]
        alike = all(a.shape == b.shape and np.array_equal(a.places, b.places) for a, b in pairs)
        result = np.array_equal(self.result_before.places, self.result_after.places)
        found = {a.value: b.value for a, b in pairs}
        return (
            found
            if alike and result and self.factor == 1 and len(set(found.values())) == len(found)
            else None
        )

    def result(self, after: np.ndarray) -> np.ndarray:
        return self.result_before.native(self.result_after.canonical(after))

    def result_back(self, before: np.ndarray) -> np.ndarray:
        return self.result_after.native(self.result_before.canonical(before))


def _by_layout(
    original: Program,
    rewritten: Program,
    site: AttentionSite,
    twin: AttentionSite,
    before: Arrays,
    after: Arrays,
) -> Exchange:
    ours, theirs = operand_layouts(original, site, before), operand_layouts(rewritten, twin, after)
    for letter in "qkv":
        if letter not in ours or letter not in theirs:
            raise InputError(f"the {letter} of {site.id} lies in several values")
        if ours[letter].places.shape != theirs[letter].places.shape:
            raise InputError(
                f"the {letter} of {site.id} is {ours[letter].places.shape} in the original and"
                f" {theirs[letter].places.shape} in the other"
            )
    result, other = result_layout(original, site, before), result_layout(rewritten, twin, after)
    if result.shape != other.shape:
        raise InputError(f"{site.id} gives {result.shape} in the original and {other.shape} in the other")
    sizes = [_size(layouts, values) for layouts, values in ((ours, before), (theirs, after))]
    factor = _factor(site.formula.scale / twin.formula.scale, sizes[1] / sizes[0])
    return _ByLayout(ours, theirs, factor, result, other)


def _size(layouts: Mapping[str, OperandLayout], values: Arrays) -> float:
    """Return how large products of queries and keys are."""
    norms = [np.linalg.norm(layouts[x].read(values[layouts[x].value]).astype(np.float64)) for x in "qk"]
    return float(np.prod(norms)) or 1.0


def _factor(scales: float, sizes: float) -> float:
    """Return what queries are multiplied by on the way.

    Where two sites scale their scores differently, one of the graphs may have scaled the queries or keys
    before, or it may be a fault: the sizes of the operands tell.
    """
    if math.isclose(scales, 1.0, rel_tol=1e-5) or not 0 < scales < math.inf:
        return 1.0
    return scales if abs(math.log(sizes / scales)) < abs(math.log(sizes)) else 1.0


def _times(x: np.ndarray, factor: float) -> np.ndarray:
    return x if factor == 1 else (x * factor).astype(x.dtype)
