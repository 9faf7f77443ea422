"""The form ``clipped``: a softmax that is stretched beyond 0 and 1 and cut off there."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from rewriter.forms import Canonical, Cost, Fidelity, Form
from rewriter.kernels.clipped.lowering import Stretch, emit_clipped
from rewriter.kernels.softmax.form import Softmax
from rewriter.kernels.softmax.lowering import (
    emit_dense,
    emit_softmax_kernel,
    kernel_operands,
    kernel_settings,
)
from rewriter.kernels.softmax.time import weights_time
from rewriter.sites.site import Trait

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from rewriter.kernels.softmax.definition import Operands
    from rewriter.lower.emitter import Emitter, Handle, KernelEmitter
    from rewriter.sites.site import AttentionSite

__all__ = ["Clipped"]

LADDER = tuple(-(10.0 ** (-k / 3)) for k in range(3, 16))
"""Values of gamma that calibration tries, the strongest first: -0.1 to -0.00001, three per decade."""


@dataclass(frozen=True)
class Clipped(Form):
    """Attention by a clipped softmax: ``clip((zeta - gamma) · softmax(scores) + gamma, 0, 1) v``.

    Parameters
    ----------
    zeta
        Where a weight of 1 is stretched to, 1 or more: weights near 1 become exactly 1.
    gamma
        Where a weight of 0 is stretched to, 0 or less: small weights become exactly 0. 0 by default.
    alpha
        Gives gamma by the number of keys instead, ``gamma = -alpha / J``: the same share of a uniform row is
        cut off at any length. 0 or more.
    error
        Choose gamma for each site by recorded data: the strongest that changes the output of the site by at
        most this much (relative). A gamma beside it is one that has been chosen so.
    """

    name: ClassVar[str] = "clipped"
    summary: ClassVar[str] = "clipped softmax: weights may be exactly zero; for models trained with it"
    kinds: ClassVar[frozenset[str]] = Softmax.kinds
    traits: ClassVar[frozenset[Trait]] = Softmax.traits

    zeta: float = 1.0
    gamma: float | None = None
    alpha: float | None = None
    error: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.zeta < math.inf:
            raise ValueError(f"zeta is {self.zeta}; expected 1 or more")
        if self.gamma is not None and not -math.inf < self.gamma <= 0:
            raise ValueError(f"gamma is {self.gamma}; expected 0 or less")
        if self.alpha is not None and not 0 <= self.alpha < math.inf:
            raise ValueError(f"alpha is {self.alpha}; expected 0 or more")
        if self.error is not None and not 0 < self.error < math.inf:
            raise ValueError(f"error is {self.error}; expected more than 0")
        if self.alpha is not None and (self.gamma is not None or self.error is not None):
            other = "gamma" if self.gamma is not None else "error"
            raise ValueError(f"alpha and {other} are both given; expected one of them: each decides gamma")

    def fidelity(self, site: AttentionSite) -> Fidelity:
        """Return `Fidelity.EXACT` where nothing is stretched."""
        if self._plain:
            return Fidelity.EXACT
        return Fidelity.TRAINING_FREE if self.error is None else Fidelity.CALIBRATED

    def why_not(self, site: AttentionSite) -> str | None:
        """Return that gamma is still to be chosen, or None."""
        if not self._open:
            return None
        return (
            f"{site.id}: error={self.error} chooses gamma by recorded data, and no data is given; give data"
            " (.npz, a directory of .npz, or module:callable), or gamma instead of error"
        )

    def choices(self, site: AttentionSite) -> tuple[Clipped, ...]:
        """Return this form with every gamma that it may be given, the strongest first; none if it has one."""
        return tuple(replace(self, gamma=float(f"{g:.3g}")) for g in LADDER) if self._open else ()

    def choose(self, site: AttentionSite, measured: Sequence[tuple[Form, float]]) -> Form | str:
        """Return the strongest that changes the site by at most `error`, or by how much the weakest does."""
        for form, error in measured:
            if self.error is None or error <= self.error:
                return form
        form, error = measured[-1]
        return (
            f"{site.id}: {form}, the weakest that is tried, changes the site by {error:.3g} on the data;"
            f" expected at most {self.error}: allow a larger error, or give gamma instead"
        )

    def emit(self, e: Emitter, a: Canonical) -> Handle:
        """Emit blocks of queries, or one fused call where nothing is stretched."""
        if self._plain:
            return emit_dense(e, a)
        return emit_clipped(e, a, Stretch(self.zeta, self.gamma or 0.0, self.alpha or 0.0))

    def emit_kernel(self, e: KernelEmitter, a: Canonical) -> Handle:
        """Emit one call of the fused kernel."""
        if self._plain:
            return emit_softmax_kernel(e, a)
        stretch = {"zeta": self.zeta, "gamma": self.gamma or 0.0, "alpha": self.alpha or 0.0}
        shape = tuple(a.shape[letter] for letter in "BHIE")
        return e.kernel("clipped", kernel_operands(a), {**kernel_settings(a), **stretch}, shape)

    def definition(self, x: Operands) -> torch.Tensor:
        """Compute it densely."""
        from rewriter.kernels.clipped.definition import clipped_attention
        from rewriter.kernels.softmax.definition import softmax_attention

        if self._plain:
            return softmax_attention(x)
        gamma = (self.gamma or 0.0) - (self.alpha or 0.0) / x.k.shape[2]
        return clipped_attention(x, zeta=self.zeta, gamma=gamma)

    def cost(self, site: AttentionSite) -> Cost:
        """Return the cost of every score; the clip needs the sum of a row first, which is another pass."""
        whole = Softmax().cost(site)
        if self._plain or whole.time is None:
            return whole
        # a causal block leaves out the keys that it does not see
        causal = site.facts.band is not None and site.facts.band.causal
        weights = weights_time(site.batch * site.heads * site.queries * site.keys, passes=1 if causal else 3)
        return replace(whole, passes=2, time=whole.time + weights)

    @property
    def _plain(self) -> bool:
        """Whether nothing is stretched: it is the softmax then."""
        return self.zeta == 1 and not self.gamma and not self.alpha and not self._open

    @property
    def _open(self) -> bool:
        """Whether gamma is still to be chosen."""
        return self.error is not None and self.gamma is None
