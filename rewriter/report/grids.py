"""Tables of a page: columns, rows of text and markup, and what stands in cells everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rewriter.report.markup import element
from rewriter.verify.intervals import Interval

__all__ = ["Cell", "Column", "Grid", "columns", "counted", "interval", "state"]

Cell = str
"""Text, which is escaped, or markup made by `rewriter.report.markup.element`."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    name: str
    number: bool = False


@dataclass(frozen=True, slots=True)
class Grid:
    """A table, its sentence, and its title where it is folded."""

    columns: tuple[Column, ...]
    rows: Sequence[Sequence[Cell]]
    lead: str = ""
    summary: str = ""


def columns(*names: str) -> tuple[Column, ...]:
    """Return columns; a name that starts with ``>`` is of numbers."""
    return tuple(Column(n.lstrip(">"), n.startswith(">")) for n in names)


def state(ok: bool | None) -> Cell:
    """Return a verdict that reads without colour; nothing for None."""
    if ok is None:
        return ""
    return element("span", "✓ pass" if ok else "✗ fail", class_=f"state {'good' if ok else 'bad'}-text")


def counted(number: int, one: str) -> str:
    """Return a number with its noun.

    >>> counted(1, "input"), counted(3, "input")
    ('1 input', '3 inputs')
    """
    return f"{number} {one if number == 1 else one + 's'}"


def interval(found: Interval) -> str:
    """Return an interval with its confidence."""
    return f"{found.low:.2f}–{found.high:.2f} at {found.confidence:.0%}"
