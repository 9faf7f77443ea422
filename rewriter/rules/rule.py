"""What a rule is: a formula, what it refuses, and how the same function is computed in fewer steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rewriter.algebra.index import Atom, resolve
from rewriter.algebra.sizes import Size, product
from rewriter.rules.match import Bound
from rewriter.rules.pattern import Pattern

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle
    from rewriter.program.program import Program

__all__ = ["Match", "Rule"]


@dataclass(frozen=True)
class Match:
    """A value of a graph that a rule's formula fits.

    Parameters
    ----------
    output
        Name of the value.
    dtype
        Of the value.
    bound
        What the names of the formula stand for.
    """

    output: str
    dtype: str
    bound: Bound

    def number(self, name: str) -> float:
        """Return a known number."""
        return self.bound.numbers[name]

    def label(self, name: str) -> str:
        """Return which alternative a choice has taken."""
        return self.bound.labels[name]

    def has(self, name: str) -> bool:
        """Whether a name stands for a value: not all alternatives have all names."""
        return name in self.bound.terms

    def size(self, axis: str) -> Size:
        """Return how long an axis is."""
        return product(atom.size for atom in self.bound.atoms(axis))

    def axis(self, name: str) -> int | None:
        """Return which axis of the result an axis of the formula is, or None if it is none, or not alone."""
        groups = self.groups("...")
        return groups.index(atoms) if (atoms := self.bound.atoms(name)) in groups else None

    def groups(self, layout: str) -> list[tuple[Atom, ...]]:
        """Return the atoms of each axis of a layout; none for an axis of size 1. See `Rule.layouts`."""
        words = layout.split()
        named = {atom for word in words if word != "..." for atom in self.bound.atoms(word)}
        found: list[tuple[Atom, ...]] = []
        for word in words:
            if word == "...":
                found += self._others(named)
            else:
                found.append(self.bound.atoms(word))
        return found

    def _others(self, named: set[Atom]) -> Iterator[tuple[Atom, ...]]:
        """Yield the atoms of each axis of the result but those that are named."""
        for dim in resolve(self.bound.root.index):
            atoms = tuple(atom for atom, _ in dim.terms)
            left = tuple(atom for atom in atoms if atom not in named)
            if left or not atoms:
                yield left


class Rule(ABC):
    """The same function in fewer steps, wherever a graph computes it.

    A rule has no state. Commutativity, grouping, views, casts and folded constants are the matcher's
    business; that other values may still be read by the rest of the graph, and that the result is the same
    on numbers, is the engine's.

    Attributes
    ----------
    name
        What ``--apply`` calls it.
    formula
        What is looked for; see `rewriter.rules.pattern`.
    layouts
        Axes of the values that `lower` is given, by name: ``"... d"`` is every other axis of the result,
        each by itself, and then ``d``.
    apart
        Values that `lower` is given one by one along an axis of known length: ``{"x": "n"}`` makes ``"x.0"``,
        ``"x.1"``, … of ``"x"``, each with the layout of ``"x"``. Values that are stacked along the axis are
        read where they were before.
    result
        Axes of what `lower` returns.
    pays
        Targets where it is measured to be a gain (``python -m benchmarks.fusion``); ``exact`` leaves a rule
        out elsewhere.

    Parameters
    ----------
    asked
        Whether it was asked for by name, and is applied where it does not pay.
    """

    name: ClassVar[str]
    formula: ClassVar[Pattern]
    layouts: ClassVar[Mapping[str, str]]
    apart: ClassVar[Mapping[str, str]] = {}
    result: ClassVar[str] = "..."
    pays: ClassVar[frozenset[str]] = frozenset({"torch", "triton", "onnx", "ort"})

    def __init__(self, *, asked: bool = True) -> None:
        self.asked = asked

    @property
    def spec(self) -> str:
        """What ``--apply`` and plans call it: its name, or where a rule from elsewhere is."""
        from rewriter.passes import RULES

        where = f"{type(self).__module__}:{type(self).__qualname__}"
        return self.name if RULES.get(self.name) == where else where

    def __call__(self, program: Program) -> Program:
        """Return a program in which what the rule fits is computed its way; see `rewriter.rules.fuse`."""
        from rewriter.rules.apply import fuse

        return fuse(program, [self])[0]

    def refuse(self, match: Match) -> str | None:
        """Return why a match is to be left as it is, in a sentence, or None."""
        return None

    def declined(self, program: Program, target: str | None) -> str | None:
        """Return why the rule is left out of ``exact`` for a target, None its own, in a sentence, or None."""
        runtime = target or ("torch" if program.format == "fx" else "onnx")
        if self.asked or runtime.partition(":")[0] in self.pays:
            return None
        return f"it is measured to be no faster for {runtime}; --apply {self.spec} does it all the same"

    @abstractmethod
    def lower(self, e: Emitter, match: Match, values: Mapping[str, Handle]) -> Handle:
        """Emit the function.

        Parameters
        ----------
        e
            Emits for one target.
        match
            What was found.
        values
            A handle for each name of `layouts` that the match has, with those axes, in ``match.dtype``; for
            a name of `apart`, one for each place.

        Returns
        -------
        Handle
            With the axes of `result`, in ``match.dtype``.
        """
