"""A near-miss: what looked like attention, how far it got, and why it is not a site."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Refusal", "Stage"]

Stage = Literal["normaliser", "values", "scores", "operands", "check"]
"""How far a near-miss got.

``normaliser``: weights are normalised, but no sum with values over that axis follows (or two products
follow one another, but make no attention). ``values``: weights meet values over the axis, but are no
weights of a known kind. ``scores``: queries, keys and values are there, and something between them is not
understood. ``operands``: the formula is known, but cannot be read from tensors of the graph. ``check``: the
formula and the graph gave different numbers.
"""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refusal is a value: it says what was found, and where.

    Parameters
    ----------
    anchor
        Name of the native node that looked like the end of an attention (or holds the normaliser).
    reason
        One sentence: what was found, and what would have been expected.
    at
        Name of the native node the reason speaks of, where it is another one.
    nearest
        The kind of site that it came closest to.
    reached
        How far it got.
    """

    anchor: str
    reason: str
    at: str | None = None
    nearest: str = "attention"
    reached: Stage = "normaliser"

    @property
    def missed(self) -> bool:
        """Whether this may be attention that could not be lifted; otherwise it is something else."""
        return self.reached in ("scores", "operands", "check")
