"""Numbers per axis of a grid, as parameters of forms: ``7``, ``7x7``, ``3x7x7``."""

from __future__ import annotations

import re

__all__ = ["joined", "normal", "numbers", "sides"]


def normal(form: str, name: str, value: int | str, least: int) -> int | str:
    """Return a parameter as it is kept: an int where it is one number, else text.

    Raises
    ------
    ValueError
        When it is neither one number nor several joined by ``x``, or one is below ``least``.
    """
    if not isinstance(value, int) and not re.fullmatch(r"[0-9]{1,9}(x[0-9]{1,9})*", value):
        raise ValueError(f"{form}: {name} is {value!r}; expected a number, or one per axis as in 7x7")
    found = numbers(value, 1 if isinstance(value, int) else value.count("x") + 1)
    if min(found) < least:
        raise ValueError(f"{form}: {name} is {value}; expected at least {least}")
    return found[0] if len(found) == 1 else joined(found)


def numbers(value: int | str, axes: int) -> tuple[int, ...]:
    """Return one number per axis; a single one counts for all.

    Raises
    ------
    ValueError
        When there is another number of them.
    """
    found = (value,) if isinstance(value, int) else tuple(map(int, value.split("x")))
    if len(found) not in (1, axes):
        raise ValueError(f"{value} is for {len(found)} axes, not {axes}")
    return found * axes if len(found) == 1 else found


def joined(values: tuple[int, ...]) -> str:
    """Return ``7x7`` for ``(7, 7)``."""
    return "x".join(map(str, values))


def sides(grid: str, tokens: int, before: int) -> tuple[int, ...] | None:
    """Return the sizes of a grid's axes, or None if it has not ``tokens`` tokens less those ``before`` it.

    Parameters
    ----------
    grid
        ``HxW``, ``TxHxW``, or ``auto`` for a square.
    tokens, before
        Numbers of all tokens, and of those that stand before the grid.
    """
    body = tokens - before
    if body < 1:
        return None
    if grid == "auto":
        side = round(body**0.5)
        return (side, side) if side * side == body else None
    found = numbers(grid, grid.count("x") + 1)
    total = 1
    for size in found:
        total *= size
    return found if total == body else None
