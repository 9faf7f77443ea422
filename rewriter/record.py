"""The record of a rewrite: what became of every site that a form was wanted for, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rewriter.forms import Cost, Fidelity, speed
from rewriter.plan import Plan
from rewriter.rules import Fused
from rewriter.verify.site import SiteCheck

__all__ = ["Applied", "Rewriting"]

DOUBT = 0.1
"""How much slower a form must be expected to be before that is said: expectations are no better."""


@dataclass(frozen=True)
class Applied:
    """What happened at one site.

    Parameters
    ----------
    site
        Its id.
    form
        ``window:window=512,sinks=4``.
    fidelity
        What the form is for this site.
    committed
        Whether the program that was returned computes the site this way.
    reason
        Why not, in a sentence; None if it is committed.
    check
        What the probes found, or None where none ran.
    error
        ``‖new - original‖ / ‖original‖`` at the site, alone: on recorded activations (root mean square
        over inputs) where there are any, else on the worst probe; None where nothing was measured.
    measured_on
        ``"data"``, ``"generated input"`` (to rank sites without data), ``"probes"`` or None.
    before, after
        What the site costs as it is and in the form.
    """

    site: str
    form: str
    fidelity: Fidelity
    committed: bool
    reason: str | None
    check: SiteCheck | None
    error: float | None
    measured_on: str | None
    before: Cost
    after: Cost

    @property
    def speed(self) -> float | None:
        """How many times faster the form is expected to be; None where lengths are not known."""
        return speed(self.before, self.after)

    @property
    def note(self) -> str | None:
        """Say that a committed form is expected to be slower than what it replaces, or None."""
        expected = self.speed
        if not self.committed or expected is None or expected >= 1 - DOUBT:
            return None
        fewer = int(self.before.flops) / int(self.after.flops)
        return (
            f"{self.form} is expected to be slower at this length than one fused attention: {expected:.2f} of"
            f" its speed on one CPU thread (operations alone would make it {fewer:.2g} times as fast)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values; symbolic costs are texts."""
        found: dict[str, Any] = {
            "site": self.site,
            "form": self.form,
            "fidelity": self.fidelity.value,
            "committed": self.committed,
            "reason": self.reason,
            "error": self.error,
            "measured_on": self.measured_on,
            "flops_before": self.before.flops.plain(),
            "flops_after": self.after.flops.plain(),
            "expected_speed": None if self.speed is None else round(self.speed, 3),
            "note": self.note,
        }
        if self.check is not None:
            found["float64_error"] = self.check.error
            found["float64_error_of_original"] = self.check.original_error
            found["float64_tolerance"] = self.check.tolerance
            found["probes"] = self.check.probes
        return found


@dataclass(frozen=True)
class Rewriting:
    """The record of one rewrite.

    Parameters
    ----------
    plan
        What was committed; replaying it on the original gives the same program.
    sites
        One entry per site that a form was wanted for, in graph order.
    fused
        One entry per value that a rule fits.
    remarks
        By what the tool chose where it was left to it, in sentences.
    """

    plan: Plan
    sites: tuple[Applied, ...]
    fused: tuple[Fused, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether anything was rewritten."""
        return bool(self.committed) or any(f.committed for f in self.fused)

    @property
    def committed(self) -> tuple[Applied, ...]:
        """Sites that were rewritten."""
        return tuple(s for s in self.sites if s.committed)

    @property
    def refused(self) -> tuple[Applied, ...]:
        """Sites that were left as they were, each with the reason."""
        return tuple(s for s in self.sites if not s.committed)

    @property
    def exact(self) -> bool:
        """Whether everything that was committed claims to be the same function."""
        return all(s.fidelity is Fidelity.EXACT for s in self.committed)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        sites, fused = [s.to_dict() for s in self.sites], [f.to_dict() for f in self.fused]
        found: dict[str, Any] = {"exact": self.exact, "sites": sites, "fused": fused}
        return {**found, "remarks": list(self.remarks)} if self.remarks else found
