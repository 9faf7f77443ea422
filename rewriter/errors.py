"""Everything this package raises on purpose. Each message is one sentence a user can act on."""

from __future__ import annotations

__all__ = ["BudgetError", "InputError", "RewriterError"]


class RewriterError(Exception):
    """Base of all deliberate errors; the command line prints the message and no traceback."""

    exit_status = 2


class InputError(RewriterError):
    """A file, an option or a value that cannot be used as it is."""


class BudgetError(RewriterError):
    """A gate failed: a budget is exceeded, a required site is missing, two models differ."""

    exit_status = 1
