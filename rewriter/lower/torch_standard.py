"""PyTorch's own operators for functions that rules find."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["standard"]


def standard(name: str, operands: tuple[Tensor | None, ...], settings: dict[str, Any]) -> Tensor | None:
    """Return the function by one operator, or None; see `rewriter.lower.emitter.Emitter.standard`."""
    x, *others = operands
    assert x is not None
    match name:
        case "layer_norm":
            weight, bias = others
            return F.layer_norm(x, x.shape[-1:], weight, bias, settings["eps"])
        case "rms_norm":
            return F.rms_norm(x, x.shape[-1:], others[0], settings["eps"])
        case "gelu":
            return F.gelu(x, approximate="tanh" if settings["tanh"] else "none")
        case "silu":
            return F.silu(x)
        case "lerp":
            end, weight = others
            return torch.lerp(x, end, weight)
        case "addcmul":
            a, b = others
            return torch.addcmul(x, a, b)
    return None
