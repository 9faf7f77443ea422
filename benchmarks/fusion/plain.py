"""Templates of the plain rules: norms, activations, positions; sizes are tokens of width 384."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.fusion.templates import Template

__all__ = ["TEMPLATES"]

WIDTH = 384


class Spelled(nn.Module):
    """A formula over a tensor and two vectors."""

    def __init__(self, formula: Callable[[Tensor, Tensor, Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.formula = formula
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(width, generator=generator))
        self.bias = nn.Parameter(torch.randn(width, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """Return the formula's value."""
        return self.formula(x, self.weight, self.bias)


def _tokens(
    formula: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Callable[[int], tuple[nn.Module, tuple[Tensor, ...]]]:
    def build(tokens: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
        generator = torch.Generator().manual_seed(1)
        return Spelled(formula, WIDTH), (torch.randn(1, tokens, WIDTH, generator=generator),)

    return build


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-6) * weight + bias


def _rms_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def _gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / 2**0.5))


def _gelu_by_tanh(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(0.7978845608 * (x + 0.044715 * torch.pow(x, 3))))


SIZES = (197, 1370)

TEMPLATES = (
    Template("layer-norm", "layer-norm", _tokens(_layer_norm), SIZES, "T5-style and hand-written norms"),
    Template("rms-norm", "rms-norm", _tokens(_rms_norm), SIZES, "llama, qwen2, smollm", opset=23),
    Template("gelu", "gelu", _tokens(_gelu), SIZES, "bert", opset=20),
    Template("gelu (tanh)", "gelu", _tokens(_gelu_by_tanh), SIZES, "gpt2, gemma", opset=20),
)
