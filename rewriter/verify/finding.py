"""What one input showed: plain numbers, so that they can be written down, read back and pooled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewriter.verify.distance import Tally
from rewriter.verify.metrics import Element

__all__ = ["Finding", "OutputFinding"]


@dataclass(frozen=True, slots=True)
class OutputFinding:
    """One output of both models on one input.

    Parameters
    ----------
    name
        In the original.
    tally
        All measures; None for an output that is not floating.
    equal, total
        Elements that are equal, and elements, of an output that is not floating.
    differ
        Which are not equal: flat positions, the first `MOST_DIFFERENT` of them.
    floor
        Error that says nothing for values of this size: `rewriter.verify.noise.floor`.
    peak
        Largest absolute value.
    worst
        Where the two are furthest apart.
    masked
        Whether hidden positions were left out.
    legs
        Source to original and source to rewritten, when there is a source.
    """

    name: str
    tally: Tally | None
    equal: int = 0
    total: int = 0
    differ: tuple[int, ...] = ()
    floor: float = 0.0
    peak: float = 0.0
    worst: Element | None = None
    masked: bool = False
    legs: tuple[Tally, ...] = ()

    def state(self) -> dict[str, Any]:
        """Return plain values; `restored` is the way back."""
        worst = self.worst
        return {
            "name": self.name,
            "tally": self.tally.state() if self.tally is not None else None,
            "equal": self.equal,
            "total": self.total,
            "differ": list(self.differ),
            "floor": self.floor,
            "peak": self.peak,
            "worst": [list(worst.index), worst.original, worst.rewritten] if worst is not None else None,
            "masked": self.masked,
            "legs": [leg.state() for leg in self.legs],
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> OutputFinding:
        """Return what `state` was taken of.

        Raises
        ------
        KeyError, TypeError, ValueError
            When it is no such state.
        """
        worst = state["worst"]
        return cls(
            name=str(state["name"]),
            tally=Tally.restored(state["tally"]) if state["tally"] is not None else None,
            equal=int(state["equal"]),
            total=int(state["total"]),
            differ=tuple(map(int, state["differ"])),
            floor=float(state["floor"]),
            peak=float(state["peak"]),
            worst=_element(worst) if worst is not None else None,
            masked=bool(state["masked"]),
            legs=tuple(map(Tally.restored, state["legs"])),
        )


@dataclass(frozen=True, slots=True)
class Finding:
    """One input.

    Parameters
    ----------
    name, group, sizes
        As `rewriter.verify.inputs.Case`.
    outputs
        One per output that counts; empty when nothing could be compared.
    error
        Why nothing could be compared, or None.
    skipped
        Whether that is because the original itself cannot run the input.
    hidden
        Share of positions that each mask among the inputs hides.
    """

    name: str
    group: str
    sizes: Mapping[str, int] = field(default_factory=dict)
    outputs: tuple[OutputFinding, ...] = ()
    error: str | None = None
    skipped: bool = False
    hidden: Mapping[str, float] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """Return plain values, without name, group and sizes; `restored` is the way back."""
        return {
            "outputs": [o.state() for o in self.outputs],
            "error": self.error,
            "skipped": self.skipped,
            "hidden": dict(self.hidden),
        }

    @classmethod
    def restored(cls, name: str, group: str, sizes: Mapping[str, int], state: Mapping[str, Any]) -> Finding:
        """Return what `state` was taken of.

        Raises
        ------
        KeyError, TypeError, ValueError
            When it is no such state.
        """
        return cls(
            name,
            group,
            sizes,
            outputs=tuple(map(OutputFinding.restored, state["outputs"])),
            error=str(state["error"]) if state["error"] is not None else None,
            skipped=bool(state["skipped"]),
            hidden={str(k): float(v) for k, v in dict(state["hidden"]).items()},
        )


def _element(state: Sequence[Any]) -> Element:
    index, original, rewritten = state
    if not all(isinstance(x, int | float) for x in (original, rewritten)):
        raise TypeError("an element has two numbers")
    return Element(tuple(map(int, index)), original, rewritten)
