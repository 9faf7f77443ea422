"""What happened where rules fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rewriter.rules.check import Check

__all__ = ["Fused", "Fusion"]


@dataclass(frozen=True)
class Fused:
    """What happened where a rule fits.

    Parameters
    ----------
    rule
        Its name.
    output
        Name of the value.
    committed
        Whether the program that was returned computes it the new way.
    reason
        Why not, in a sentence; None if it is committed.
    check
        What probing found, or None where nothing was run.
    gain
        What there is less of, with figures, where a rule says it.
    """

    rule: str
    output: str
    committed: bool
    reason: str | None = None
    check: Check | None = None
    gain: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        found: dict[str, Any] = {
            "rule": self.rule,
            "output": self.output,
            "committed": self.committed,
            "reason": self.reason,
        }
        if self.gain is not None:
            found["gain"] = self.gain
        if self.check is not None:
            found["float64_error"] = self.check.error
            found["float64_error_of_original"] = self.check.original_error
            found["float64_tolerance"] = self.check.tolerance
        return found


@dataclass(frozen=True)
class Fusion:
    """The record of one application of rules.

    Parameters
    ----------
    matches
        One entry per value that a rule fits, in graph order.
    """

    matches: tuple[Fused, ...]

    @property
    def committed(self) -> tuple[Fused, ...]:
        """What was rewritten."""
        return tuple(m for m in self.matches if m.committed)

    @property
    def refused(self) -> tuple[Fused, ...]:
        """What was left as it was, each with the reason."""
        return tuple(m for m in self.matches if not m.committed)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {"matches": [m.to_dict() for m in self.matches]}
