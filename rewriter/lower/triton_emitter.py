"""Emits PyTorch operators, and fused kernels as operators ``torch.ops.rewriter.*``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rewriter.algebra.sizes import Size, SizeLike
from rewriter.lower.emitter import EmptyRow
from rewriter.lower.torch_emitter import TorchEmitter

__all__ = ["TritonEmitter"]


class TritonEmitter(TorchEmitter):
    """Emits every attention as the fused kernel of softmax, and what has a kernel of its own by `kernel`."""

    target = "triton"

    def kernel(
        self,
        name: str,
        operands: Sequence[Tensor | None],
        settings: Mapping[str, Any],
        shape: Sequence[SizeLike],
    ) -> Tensor:
        """Call ``torch.ops.rewriter.<name>(*operands, **settings)``; its first result has the given shape."""
        import rewriter.operators  # noqa: F401

        numbers = {k: self._number(v) if isinstance(v, Size) else v for k, v in settings.items()}
        found = getattr(torch.ops.rewriter, name).default(*operands, **numbers)
        return self._known(found[0] if isinstance(found, tuple) else found, shape)

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        bias: Tensor | None = None,
        causal: bool = False,
        empty_row: EmptyRow = "never",
        softcap: float | None = None,
        sink: Tensor | None = None,
    ) -> Tensor:
        """Softmax attention by the fused kernel."""
        settings = {"scale": scale, "softcap": softcap, "empty_row": empty_row}
        if causal:
            settings["right"] = 0
        return self.kernel("softmax", (q, k, v, bias, sink), settings, (*self.shape(q)[:3], self.shape(v)[3]))
