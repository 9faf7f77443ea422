"""PyTorch's own operators for functions that rules find."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["standard"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "hard_swish": F.hardswish,
    "mish": F.mish,
    "silu": F.silu,
}


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
        case "group_norm":
            weight, bias = others
            return F.group_norm(x, settings["groups"], weight, bias, settings["eps"])
        case "gelu":
            return F.gelu(x, approximate="tanh" if settings["tanh"] else "none")
        case "silu" | "mish" | "hard_swish":
            return _ACTIVATIONS[name](x)
        case "lerp" | "addcmul":
            a, b = others
            assert a is not None and b is not None
            return torch.lerp(x, a, b) if name == "lerp" else torch.addcmul(x, a, b)
        case "linear":
            weight, bias = others
            assert weight is not None
            return F.linear(x, weight, bias)
        case "mean" | "max":
            pool = torch.mean if name == "mean" else torch.amax
            return pool(x, settings["axes"], keepdim=True)
        case "convolution":
            return _convolution(x, *others, **settings)
    return None


def _convolution(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilations: Sequence[int],
    groups: int,
) -> Tensor:
    if any(before != after for before, after in padding):
        x = F.pad(x, [n for pair in reversed(padding) for n in pair])
        padding = [(0, 0)] * len(padding)
    assert weight is not None
    each = [before for before, _ in padding]
    convolve = (F.conv1d, F.conv2d, F.conv3d)[len(padding) - 1]
    return convolve(x, weight, bias, list(strides), each, list(dilations), groups)
