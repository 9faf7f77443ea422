"""The form ``gated``: softmax attention whose heads can be closed by their queries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from rewriter.forms import Canonical, Cost, Fidelity, Form
from rewriter.kernels.gated.lowering import emit_gated, emit_gated_kernel
from rewriter.kernels.gated.weights import GateWeights, read_gate
from rewriter.kernels.softmax.fitted import check_path
from rewriter.kernels.softmax.form import Softmax
from rewriter.kernels.softmax.lowering import emit_dense, emit_softmax_kernel
from rewriter.sites.site import Trait

if TYPE_CHECKING:
    import torch

    from rewriter.kernels.softmax.definition import Operands
    from rewriter.lower.emitter import Emitter, Handle, KernelEmitter
    from rewriter.sites.site import AttentionSite

__all__ = ["Gated"]


@dataclass(frozen=True)
class Gated(Form):
    """Softmax attention times a gate per head and query, ``sigmoid(weight[h] · q + bias[h])``.

    Parameters
    ----------
    bias
        Opens the gate of every head by the same amount, whatever the query: its result is multiplied by
        ``sigmoid(bias)``. Infinity, the default, is an open gate.
    weights
        Instead of ``bias``, a ``.npz`` file with ``weight``, ``[heads, features]``, and ``bias``, ``[heads]``
        (0 if it is missing), trained for this site. No comma in its path.
    """

    name: ClassVar[str] = "gated"
    summary: ClassVar[str] = (
        "softmax attention with a gate per head that the query opens; for models trained with it"
    )
    kinds: ClassVar[frozenset[str]] = Softmax.kinds
    traits: ClassVar[frozenset[Trait]] = Softmax.traits

    bias: float = math.inf
    weights: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if math.isnan(self.bias):
            raise ValueError("bias is nan; expected a number, or inf for an open gate")
        check_path(self.weights)
        if self.weights is not None and self.bias != math.inf:
            raise ValueError(
                "bias and weights are both given; expected one of them: the file has a bias of its own"
            )

    def fidelity(self, site: AttentionSite) -> Fidelity:
        """Return `Fidelity.EXACT` where the gate is open."""
        if self.weights is not None:
            return Fidelity.DISTILLED
        return Fidelity.EXACT if self._open else Fidelity.TRAINING_FREE

    def why_not(self, site: AttentionSite) -> str | None:
        """Return that the weights do not fit the site, or None."""
        if self.weights is None:
            return None
        try:
            gate = read_gate(self.weights)
        except ValueError as error:
            return f"{site.id}: {error}"
        assert gate.weight is not None
        heads, features = gate.weight.shape
        if (site.heads.known(), site.qk_dim.known()) == (heads, features):
            return None
        return (
            f"{site.id} has {site.heads} heads with {site.qk_dim} features;"
            f" weights {self.weights} are for {heads} with {features}"
        )

    def emit(self, e: Emitter, a: Canonical) -> Handle:
        """Emit one fused call, and a product where the gate is not open."""
        return emit_dense(e, a) if self._open else emit_gated(e, a, self._gate)

    def emit_kernel(self, e: KernelEmitter, a: Canonical) -> Handle:
        """Emit one call of the kernel of softmax attention, and a product where the gate is not open."""
        return emit_softmax_kernel(e, a) if self._open else emit_gated_kernel(e, a, self._gate)

    def definition(self, x: Operands) -> torch.Tensor:
        """Compute it densely."""
        import torch

        from rewriter.kernels.gated.definition import gated_attention
        from rewriter.kernels.softmax.definition import softmax_attention

        if self._open:
            return softmax_attention(x)
        gate = self._gate
        weight = None if gate.weight is None else torch.from_numpy(gate.weight)
        return gated_attention(x, weight=weight, bias=torch.from_numpy(gate.bias))

    def cost(self, site: AttentionSite) -> Cost:
        """Return the cost of softmax attention; the gate is one more operation per result."""
        return Softmax().cost(site)

    @property
    def _open(self) -> bool:
        return self.weights is None and self.bias == math.inf

    @property
    def _gate(self) -> GateWeights:
        return GateWeights(None, np.asarray(self.bias)) if self.weights is None else read_gate(self.weights)
