"""Rules that no one formula says: they look at the whole graph and may change shapes inside it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rewriter.lower.errors import EmitError
from rewriter.program.program import Insertion, Program
from rewriter.rules.rule import Match, Rule

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle

__all__ = ["Change", "Declined", "GraphRule"]


@dataclass(frozen=True)
class Change:
    """Edits that belong together.

    Parameters
    ----------
    output
        Name of the value that the record is about.
    insertions
        In the order of the graph.
    gain
        What there is less of, with figures.
    """

    output: str
    insertions: tuple[Insertion, ...]
    gain: str


@dataclass(frozen=True)
class Declined:
    """A place that is left as it is.

    Parameters
    ----------
    output
        Name of the value.
    reason
        Why, in a sentence.
    """

    output: str
    reason: str


class GraphRule(Rule):
    """The same function in fewer steps, where it takes more than one formula to see it. Exact.

    Attributes
    ----------
    looks_for
        What ``explain`` prints where a rule has its formula.
    """

    looks_for: ClassVar[str]
    layouts: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def changes(self, program: Program) -> tuple[Sequence[Change], Sequence[Declined]]:
        """Return what can be done, and what is left as it is."""

    def lower(self, e: Emitter, match: Match, values: Mapping[str, Handle]) -> Handle:
        """Refuse: there is no formula."""
        raise EmitError(f"{self.name} is no formula")
