"""Landmarks: the few tokens that stand for all of a sequence or of a grid."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rewriter.sites.site import AttentionSite

__all__ = ["FAINT", "MOVES", "NEARNESS", "POOLS", "PRIOR", "Landmarks", "bins", "middles", "shown_plane"]

POOLS = ("stride", "mean")

MOVES = 2
"""How often agents move to the queries that are nearest to them."""

NEARNESS = 4.0
"""How sharply a query belongs to its nearest agent: a factor on the scale of the scores."""

PRIOR = 2.0**-10
"""For how many queries an agent's own place counts, so that one without queries near it stays there."""

FAINT = 32
"""A key whose bias is more than this below the largest is hidden: ``exp(-32)`` of its weight, or less."""


def middles(count: int, tokens: int) -> list[int]:
    """Return the token in the middle of each of ``count`` equal parts of a sequence.

    Examples
    --------
    >>> middles(3, 9)
    [1, 4, 7]
    >>> middles(4, 2)
    [0, 0, 1, 1]
    """
    return [(2 * i + 1) * tokens // (2 * count) for i in range(count)]


def bins(count: int, tokens: int) -> list[tuple[int, int]]:
    """Return the start and the end of each bin of adaptive average pooling; bins may share tokens.

    Examples
    --------
    >>> bins(3, 9)
    [(0, 3), (3, 6), (6, 9)]
    >>> bins(2, 3)
    [(0, 2), (1, 3)]
    """
    return [(i * tokens // count, math.ceil(Fraction((i + 1) * tokens, count))) for i in range(count)]


def shown_plane(site: AttentionSite) -> tuple[str, int] | None:
    """Return the grid of the queries that the graph shows, ``HxW``, and the number of tokens before it.

    None where it shows none of two axes of known sizes.
    """
    shown = site.geometry
    if shown is None or shown.grid is None or shown.prefix is None:
        return None
    known = [n for n in (size.known() for size in shown.grid) if n is not None]
    tokens = site.queries.known()
    if len(shown.grid) != 2 or len(known) != 2 or tokens != known[0] * known[1] + shown.prefix:
        return None
    return f"{known[0]}x{known[1]}", shown.prefix


@dataclass(frozen=True)
class Landmarks:
    """How landmarks are chosen among the tokens.

    Parameters
    ----------
    count
        How many; a square number on a grid.
    protect
        First tokens that are no landmarks.
    grid
        The other tokens are a row-major grid: ``HxW``, or ``auto`` for a square one. None is a sequence.
    pool
        ``stride`` takes the token in the middle of each of ``count`` equal parts, ``mean`` the mean of each
        (adaptive average pooling). On a grid the parts are rectangles.
    name
        What they are called in messages.

    Raises
    ------
    ValueError
        When a value is not allowed.
    """

    count: int
    protect: int = 0
    grid: str | None = None
    pool: str = "stride"
    name: str = "landmarks"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"{self.name} is {self.count}; expected at least 1")
        if self.protect < 0:
            raise ValueError(f"protect is {self.protect}; expected 0 or more")
        if self.pool not in POOLS:
            raise ValueError(f"pool is {self.pool!r}; expected {' or '.join(POOLS)}")
        if self.grid is None:
            return
        if self.grid != "auto" and not re.fullmatch(r"[1-9][0-9]{0,8}x[1-9][0-9]{0,8}", self.grid):
            raise ValueError(f"grid is {self.grid!r}; expected auto, or rows and columns as in 32x32")
        if self.side**2 != self.count:
            near = max(1, round(self.count**0.5)) ** 2
            raise ValueError(f"{self.name} is {self.count}; expected a square number on a grid, as {near}")

    @property
    def side(self) -> int:
        """How many landmarks there are along each axis of a grid."""
        return math.isqrt(self.count)

    def sides(self, tokens: int) -> tuple[int, int] | None:
        """Return rows and columns of the grid, or None if it does not fit that many tokens."""
        body = tokens - self.protect
        if body < 1 or self.grid is None:
            return None
        if self.grid == "auto":
            side = math.isqrt(body)
            return (side, side) if side * side == body else None
        rows, columns = map(int, self.grid.split("x"))
        return (rows, columns) if rows * columns == body else None

    def why_not(self, site: AttentionSite) -> str | None:
        """Return why queries of a site cannot be stood for by landmarks, or None."""
        facts = site.facts
        if facts.band is not None:
            return (
                f"{site.id} is causal or windowed along its sequence; {self.name} meet all keys, and every"
                f" query meets all {self.name}, the later ones too"
            )
        if not (facts.dense or facts.by_keys):
            return (
                f"{site.id} has a mask or bias ({facts.mask}) that is not proved to be the same for every"
                f" query; {self.name} stand for many queries at once"
            )
        tokens = site.queries.known()
        if self.grid is not None:
            return self._why_no_grid(site, tokens)
        if tokens is not None and self.count > tokens - self.protect:
            return f"{site.id} has {tokens - self.protect} tokens for {self.count} {self.name}; ask for fewer"
        return None

    def _why_no_grid(self, site: AttentionSite, tokens: int | None) -> str | None:
        if not site.facts.dense:
            return f"{site.id} has a mask or bias by keys; a grid needs all of its tokens, alike"
        if tokens is None:
            return (
                f"{site.id} has {site.queries} queries; a grid needs a number (fix the input size when"
                " tracing or exporting)"
            )
        sides, shown = self.sides(tokens), shown_plane(site)
        if sides is not None and shown is not None and shown != (f"{sides[0]}x{sides[1]}", self.protect):
            return (
                f"{site.id}: the graph shows a grid of {shown[0]} after {shown[1]} tokens, not"
                f" {sides[0]}x{sides[1]} after {self.protect}; set grid=auto"
            )
        if sides is None:
            shape = "a square" if self.grid == "auto" else self.grid
            return (
                f"{site.id} has {tokens} tokens: {tokens - self.protect} after {self.protect} protected ones,"
                f" which is not {shape}; set protect to the number of tokens before the grid, and grid=HxW"
            )
        if self.side > min(sides):
            return (
                f"{site.id} has a grid of {sides[0]}x{sides[1]} for {self.side}x{self.side} {self.name}; ask"
                " for fewer"
            )
        return None
