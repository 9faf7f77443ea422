"""Templates of the plain rules; sizes are tokens of width 384, or the edge of a map of 64 channels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


def _silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def _mish(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x * torch.tanh(torch.log(1 + torch.exp(x)))


def _softplus(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.log(1 + torch.exp(x))


def _hard_swish(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x * nn.functional.relu6(x + 3) / 6


def _softmax(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    powers = torch.exp(x - x.amax(-1, keepdim=True))
    return powers / powers.sum(-1, keepdim=True)


def _l2_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x / (x.pow(2).sum(-1, keepdim=True) + 1e-6).sqrt()


class Groups(nn.Module):
    """A norm of groups of channels, by hand; 64 channels."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(64, generator=generator))
        self.bias = nn.Parameter(torch.randn(64, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised map."""
        alone = self.groups == 64
        rows = x if alone else torch.unflatten(x, 1, (self.groups, -1))
        axes = tuple(range(2, rows.dim()))
        centred = rows - rows.mean(axes, keepdim=True)
        normal = centred / torch.sqrt(centred.pow(2).mean(axes, keepdim=True) + 1e-5)
        return normal.reshape(x.shape) * self.weight[:, None, None] + self.bias[:, None, None]


def _groups(groups: int) -> Callable[[int], tuple[nn.Module, tuple[Tensor, ...]]]:
    def build(edge: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
        generator = torch.Generator().manual_seed(1)
        return Groups(groups), (torch.randn(1, 64, edge, edge, generator=generator),)

    return build


class Rotated(nn.Module):
    """Six heads of 64 features, rotated by their place."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        angles = torch.arange(tokens)[:, None] / 10000 ** (torch.arange(32) / 32)
        self.register_buffer("cos", torch.cat((angles, angles), -1).cos())
        self.register_buffer("sin", torch.cat((angles, angles), -1).sin())

    def forward(self, x: Tensor) -> Tensor:
        """Return the rotated value."""
        rotated = torch.cat((-x[..., 32:], x[..., :32]), -1)
        return x * self.get_buffer("cos") + rotated * self.get_buffer("sin")


def _rotated(tokens: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(1)
    return Rotated(tokens), (torch.randn(1, 6, tokens, 64, generator=generator),)


class Gated(nn.Module):
    """Gate and value of one source, multiplied: SwiGLU without its last product."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.up = (nn.Linear(WIDTH, 4 * WIDTH, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated value."""
        gate: Tensor = nn.functional.silu(self.gate(x))
        up: Tensor = self.up(x)
        return gate * up


def _gated(tokens: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Gated(), (torch.randn(1, tokens, WIDTH, generator=torch.Generator().manual_seed(1)),)


class Branches(nn.Module):
    """Convolutions of one map of 64 channels, each with a norm, added."""

    def __init__(self, *kernels: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolutions = nn.ModuleList(nn.Conv2d(64, 64, k, padding=k // 2, bias=False) for k in kernels)
        self.norms = nn.ModuleList(nn.BatchNorm2d(64) for _ in kernels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum, cut off at 0."""
        first, *others = (n(c(x)) for c, n in zip(self.convolutions, self.norms, strict=True))
        for other in others:
            first = first + other
        return torch.relu(first)


class _Standardised(nn.Module):
    """A convolution whose weights are standardised at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.raw, self.gain = nn.Parameter(torch.randn(64, 64, 3, 3)), nn.Parameter(torch.rand(64, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the map."""
        var, mean = torch.var_mean(self.raw, dim=(1, 2, 3), unbiased=False, keepdim=True)
        return F.conv2d(x, self.gain * (self.raw - mean) * torch.rsqrt(var + 1e-5), padding=1)


def _standardised(side: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    x = torch.randn(1, 64, side, side, generator=torch.Generator().manual_seed(0))
    return _Standardised().eval(), (x,)


def _branches(*kernels: int) -> Callable[[int], tuple[nn.Module, tuple[Tensor, ...]]]:
    def build(edge: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
        generator = torch.Generator().manual_seed(1)
        return Branches(*kernels), (torch.randn(1, 64, edge, edge, generator=generator),)

    return build


SIZES = (197, 1370)
MAPS = (28, 56)

EVERY = ("torch", "onnx", "ort")

TEMPLATES = (
    Template("layer-norm", "layer-norm", _tokens(_layer_norm), SIZES, "hand-written norms"),
    Template("rms-norm", "rms-norm", _tokens(_rms_norm), SIZES, "llama, qwen2, smollm", opset=23),
    Template("gelu", "gelu", _tokens(_gelu), SIZES, "bert", opset=20, targets=EVERY),
    Template("gelu (tanh)", "gelu", _tokens(_gelu_by_tanh), SIZES, "gpt2, gemma", opset=20, targets=EVERY),
    Template("silu", "silu", _tokens(_silu), SIZES, "hand-written", targets=("torch", "ort")),
    Template("mish", "mish", _tokens(_mish), SIZES, "yolov4, cspdarknet"),
    Template("softplus", "softplus", _tokens(_softplus), SIZES, "mamba"),
    Template("hard-swish", "hard-swish", _tokens(_hard_swish), SIZES, "mobilenetv3"),
    Template("softmax", "stable-softmax", _tokens(_softmax), SIZES, "hand-written"),
    Template("group-norm, 8 groups", "group-norm", _groups(8), MAPS, "hand-written norms"),
    Template("group-norm, a channel each", "group-norm", _groups(64), MAPS, "style transfer"),
    Template("l2-norm", "l2-norm", _tokens(_l2_norm), SIZES, "cosine attention", opset=23),
    Template("rotary", "rotary", _rotated, SIZES, "llama, eva, rope vit", opset=23, targets=("onnx", "ort")),
    Template("gate and value (SwiGLU)", "shared-projections", _gated, SIZES, "llama, eva02"),
    Template("batch-norm", "reparameterize", _branches(3), MAPS, "efficientnet, resnet"),
    Template("standardised weights", "static-operands", _standardised, MAPS, "nfnet, resnetv2 (BiT)"),
    Template("parallel convolutions", "reparameterize", _branches(3, 1), MAPS, "repvgg"),
)
