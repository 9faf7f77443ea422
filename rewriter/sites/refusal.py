"""A near-miss: what looked like attention, how far it got, and why it is not a site."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Refusal"]


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
    """

    anchor: str
    reason: str
    at: str | None = None
