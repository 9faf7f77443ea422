"""What a form is: a way to compute a site, defined once and used by every target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast, get_type_hints

from rewriter.algebra.sizes import Size
from rewriter.parameters import plain_type, read, typed
from rewriter.sites.site import KINDS, Trait

if TYPE_CHECKING:
    import torch

    from rewriter.kernels.softmax.definition import Operands
    from rewriter.lower.emitter import Emitter, EmptyRow, Handle, KernelEmitter
    from rewriter.sites.site import AttentionSite, Band

__all__ = ["LONGEST", "Canonical", "Cost", "Fidelity", "Form", "refusal", "speed", "trial_length"]

LONGEST = 8192
"""Tokens that a form is tried on at most: all scores of as many are computed by the original."""


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
    """What one site costs.

    Parameters
    ----------
    flops
        Floating-point operations of the products.
    bytes
        Moved through the keys axis.
    passes
        Over the keys.
    time
        Operations of a large fused attention that take as long on a CPU as all of it does, copies and calls
        too: what a form promises in comparison with another. None where only the operations are known.
    """

    flops: Size
    bytes: Size
    passes: int
    time: Size | None = None


def speed(before: Cost, after: Cost) -> float | None:
    """Return how many times faster ``after`` is expected to be; None where a time or a length is not known.

    Examples
    --------
    >>> n = Size.of
    >>> speed(Cost(n(8), n(0), 1, n(12)), Cost(n(2), n(0), 1, n(6)))
    2.0
    """
    if before.time is None or after.time is None:
        return None
    times = before.time.known(), after.time.known()
    return None if times[0] is None or not times[1] else times[0] / times[1]


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
    implied
        Proved mask that ``bias`` does contain and that must not be applied twice: what it hides by a finite
        number still counts where a query sees no key at all. For forms that hide more anyway.
    softcap
        Scaled scores ``s`` become ``softcap · tanh(s / softcap)`` before the bias is added, unless None.
    sink
        Logits that take part in every softmax and have no value: rank 4, broadcasts to ``[B, H, I, S]`` with
        ``S`` of them; None if there are none.
    normalizer
        As `AttentionSite.normalizer`: what makes weights of the scores.
    shift
        Added to the scaled scores where no softmax follows.
    """

    q: Handle
    k: Handle
    v: Handle
    bias: Handle | None
    band: Band | None
    scale: float
    empty_row: EmptyRow
    shape: dict[str, Size]
    implied: Band | None = None
    softcap: float | None = None
    sink: Handle | None = None
    normalizer: str = "softmax"
    shift: float = 0.0


@dataclass(frozen=True)
class Form(ABC):
    """A way to compute attention. The fields of a subclass are its parameters, typed and with defaults.

    A subclass documents every field in its docstring, checks ranges in ``__post_init__`` after that of this
    class, which checks types (raise `ValueError` with what was found and what is allowed), and has a class
    name for people and a ``name`` for the command line.

    Attributes
    ----------
    kinds
        Of `rewriter.sites.site.KINDS`, those that the form is legal for.
    normalizers
        Those that it computes, as in `AttentionSite.normalizer`.
    traits
        What a site may do besides ``softmax(scale · q kᵀ + bias) v``, because the form does it too.
    rows_apart
        A query's result does not depend on the other queries, so that the definition may be given a few of
        them.
    typical
        Settings of a typical use, as for `parse`, where the defaults alone are none.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    kinds: ClassVar[frozenset[str]] = frozenset({"attention"})
    normalizers: ClassVar[frozenset[str]] = frozenset({"softmax"})
    traits: ClassVar[frozenset[Trait]] = frozenset()
    typical: ClassVar[tuple[str, ...]] = ()
    rows_apart: ClassVar[bool] = True

    def __post_init__(self) -> None:
        hints = _hints(type(self))
        for f in fields(self):
            value = typed(self.name, f.name, hints[f.name], getattr(self, f.name))
            object.__setattr__(self, f.name, value)

    @abstractmethod
    def fidelity(self, site: AttentionSite) -> Fidelity:
        """Return what this form, with these parameters, is for this site."""

    def at(self, site: AttentionSite) -> Form:
        """Return the form with what it leaves to the site (``auto``) filled in, as far as the site shows."""
        return self

    def choices(self, site: AttentionSite) -> tuple[Form, ...]:
        """Return what recorded data is to choose from, the most wanted first; none if there is no choice."""
        return ()

    def choose(self, site: AttentionSite, measured: Sequence[tuple[Form, float]]) -> Form | str | None:
        """Return which of its `choices` a site gets, the sentence why none will do, or None: as without data.

        Parameters
        ----------
        site
            Where.
        measured
            At least one of the choices, in their order, with how much it changes the site (relative).
        """
        return measured[0][0]

    def why_not(self, site: AttentionSite) -> str | None:
        """Return the sentence why the form is not legal for a site of its kinds and traits, or None if it is.

        Ask `refusal`, which looks at these first.
        """
        return None

    def adapt(self, a: Canonical) -> Canonical:
        """Return the operands as this form takes them: as they are, unless a subclass says otherwise."""
        return a

    @abstractmethod
    def emit(self, e: Emitter, a: Canonical) -> Handle:
        """Emit the computation; return ``[B, H, I, E]``."""

    def emit_kernel(self, e: KernelEmitter, a: Canonical) -> Handle:
        """Emit a call of the form's fused kernel.

        A form that has none emits its lowering, in which each attention becomes the kernel of softmax.
        """
        return self.emit(e, a)

    def lower(self, e: Emitter, a: Canonical) -> Handle:
        """Emit what the target asks for: the fused kernel, or the lowering."""
        return self.emit_kernel(cast("KernelEmitter", e), a) if e.target == "triton" else self.emit(e, a)

    @abstractmethod
    def definition(self, x: Operands) -> torch.Tensor:
        """Compute the same, densely and plainly, in float32 or wider: what everything is tested against.

        A band must have a number for its offset.
        """

    @abstractmethod
    def cost(self, site: AttentionSite) -> Cost:
        """Return what the site costs in this form."""

    @property
    def spans(self) -> bool:
        """Whether it changes what later sites are given, so that it is applied to the program as a whole."""
        return False

    @property
    def files(self) -> tuple[str, ...]:
        """Return the ``.npz`` files that it reads."""
        path = self.parameters.get("weights")
        return () if path is None else (str(path),)

    @property
    def ranked(self) -> bool:
        """Whether sites can be ranked by what it changes at each: not where it chooses among them itself."""
        return True

    @property
    def telling_length(self) -> int | None:
        """Length of a sequence at which every part of the lowering does something; None if any will do."""
        return None

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameters by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def __str__(self) -> str:
        inside = ",".join(f"{k}={v}" for k, v in self.parameters.items() if v is not None)
        return f"{self.name}:{inside}" if inside else self.name

    @classmethod
    def parse(cls, settings: Sequence[str]) -> Self:
        """Build from ``["window=512", "sinks=4"]``.

        Raises
        ------
        ValueError
            When a parameter is unknown, repeated, missing, of another type or out of range; the message
            says which parameters there are.
        """
        types, known = cls.parameter_types(), ", ".join(cls.usage())
        found: dict[str, Any] = {}
        for setting in settings:
            name, equals, text = setting.partition("=")
            name = name.strip()
            if name not in types or not equals:
                raise ValueError(f"{cls.name} has no parameter {setting.strip()!r}; it has {known or 'none'}")
            if name in found:
                raise ValueError(f"{cls.name}: {name} is given twice")
            found[name] = read(cls.name, name, types[name], text.strip())
        missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in found]
        if missing:
            raise ValueError(f"{cls.name} needs {' and '.join(missing)}; its parameters are {known}")
        return cls(**found)

    @classmethod
    def parameter_types(cls) -> dict[str, type]:
        """Types of the parameters by name; what may be text is text, None is left out."""
        hints = _hints(cls)
        return {f.name: plain_type(hints[f.name]) for f in fields(cls)}

    @classmethod
    def usage(cls) -> list[str]:
        """One line per parameter: ``window: int``, ``sinks: int = 0``."""
        types = cls.parameter_types()
        lines = []
        for f in fields(cls):
            default = "" if f.default is MISSING or f.default is None else f" = {f.default}"
            lines.append(f"{f.name}: {types[f.name].__name__}{default}")
        return lines


def trial_length(form: Form) -> int | None:
    """Return the length to try a form at where lengths are dynamic: its `telling_length`, up to `LONGEST`."""
    telling = form.telling_length
    return None if telling is None else min(telling, LONGEST)


_TRAITS: dict[Trait, str] = {
    "softcap": "is soft-capped",
    "sink": "has sinks in its softmax",
    "head-mixing": "mixes its heads",
    "score-function": "applies a function to the products of queries and keys",
    "weight-function": "changes its weights before they meet the values",
}


def refusal(form: Form, site: AttentionSite) -> str | None:
    """Return the sentence why a form is not legal for a site, or None if it is."""
    if site.kind not in form.kinds:
        kinds = sorted(form.kinds)
        for_these = " and ".join([", ".join(kinds[:-1]), kinds[-1]] if kinds[1:] else kinds)
        return f"{site.id} is {site.kind} ({KINDS.get(site.kind, 'unknown')}); {form.name} is for {for_these}"
    if site.normalizer not in form.normalizers:
        return f"{site.id} is normalised by {site.normalizer}, which {form.name} does not compute"
    foreign = [trait for trait in site.traits if trait not in form.traits]
    if foreign:
        found = " and ".join(f"{_TRAITS[trait]} ({trait})" for trait in foreign)
        return f"{site.id} {found}, which {form.name} does not compute"
    return form.why_not(site)


@cache
def _hints(form: type[Form]) -> dict[str, Any]:
    return get_type_hints(form)
