"""What a form is: a way to compute a site, defined once and used by every target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from rewriter.algebra.sizes import Size

if TYPE_CHECKING:
    import torch

    from rewriter.lower.emitter import Emitter, EmptyRow, Handle
    from rewriter.sites.site import AttentionSite, Band

__all__ = ["Canonical", "Cost", "Fidelity", "Form"]


class Fidelity(Enum):
    """How a form relates to what it replaces."""

    EXACT = "exact"
    """The same real-valued function; floating-point differences within the noise of the original."""
    TRAINING_FREE = "training-free"
    """An approximation without any fitted parameter."""
    CALIBRATED = "calibrated"
    """An approximation with parameters set from recorded activations."""
    DISTILLED = "distilled"
    """An approximation with parameters trained to reproduce the site."""


@dataclass(frozen=True)
class Cost:
    """What one site costs: floating-point operations and bytes moved through the keys axis."""

    flops: Size
    bytes: Size
    passes: int


@dataclass(frozen=True)
class Canonical:
    """A site's operands as a form sees them, whatever layout the graph has.

    Parameters
    ----------
    q, k, v
        Handles ``[B, H, I, D]``, ``[B, G, J, D]``, ``[B, G, J, E]``.
    bias
        Added to the scaled scores, rank 4, broadcasts to ``[B, H, I, J]``; None if there is none.
        Leaves out what ``band`` says.
    band
        Proved mask that ``bias`` does not contain, or None. Every form must apply it.
    scale
        Factor on the scores.
    empty_row
        What a query without visible keys must give (with both ``bias`` and ``band``).
    shape
        Sizes by letter: ``B H G I J D E``.
    """

    q: Handle
    k: Handle
    v: Handle
    bias: Handle | None
    band: Band | None
    scale: float
    empty_row: EmptyRow
    shape: dict[str, Size]


@dataclass(frozen=True)
class Form(ABC):
    """A way to compute attention. The fields of a subclass are its parameters, typed and with defaults.

    A subclass documents every field in its docstring, checks ranges in ``__post_init__`` (raise
    `ValueError` with what was found and what is allowed), and has a class name for people and a
    ``name`` for the command line.
    """

    name: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def fidelity(self, site: AttentionSite) -> Fidelity:
        """Return what this form, with these parameters, is for this site."""

    @abstractmethod
    def why_not(self, site: AttentionSite) -> str | None:
        """Return the sentence why the form is not legal for the site, or None if it is."""

    @abstractmethod
    def emit(self, e: Emitter, a: Canonical) -> Handle:
        """Emit the computation; return ``[B, H, I, E]``."""

    @abstractmethod
    def definition(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, scale: float, band: Band | None
    ) -> torch.Tensor:
        """Compute the same, densely and plainly, in float32 or wider: what everything is tested against."""

    @abstractmethod
    def cost(self, site: AttentionSite) -> Cost:
        """Return what the site costs in this form."""

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameters by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def __str__(self) -> str:
        inside = ",".join(f"{k}={v}" for k, v in self.parameters.items() if v is not None)
        return f"{self.name}:{inside}" if inside else self.name

    @classmethod
    def parse(cls, settings: Sequence[str]) -> Form:
        """Build from ``["window=512", "sinks=4"]``; `ValueError` says which names and types there are."""
        raise NotImplementedError


