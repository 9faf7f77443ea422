"""Rules that give another program as a whole: there are no places to tell apart."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from rewriter.rules.graph_rule import Change, Declined, GraphRule

if TYPE_CHECKING:
    from rewriter.program.program import Program

__all__ = ["WholeRule"]


class WholeRule(GraphRule):
    """The same function by a smaller graph. Exact.

    Attributes
    ----------
    follows
        Whether it is applied after all others, and in ``exact`` is no reason to write a file by itself. One
        that does not follow is applied before all others.
    """

    follows: ClassVar[bool] = True

    @abstractmethod
    def smaller(self, program: Program) -> tuple[Program, Mapping[str, int]]:
        """Return the program, and how many nodes of which kind are gone; none if it is the same.

        Raises
        ------
        RewriterError
            When it cannot be made.
        """

    def changes(self, program: Program) -> tuple[Sequence[Change], Sequence[Declined]]:
        """Return nothing: a graph is changed as a whole."""
        return (), ()
