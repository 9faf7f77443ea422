"""How long work tells where it is: a callback, so that nothing here knows about terminals."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress", "silent"]

Progress = Callable[[str, int, int], None]
"""``progress(what, done, total)``; called before the first step and after each."""


def silent(what: str, done: int, total: int) -> None:
    """Say nothing."""
