"""Templates of gates and fusion blocks; sizes are the side of square maps of 64 channels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.fusion.templates import Template
from rewriter.models_zoo import gates

__all__ = ["TEMPLATES"]

CHANNELS = 64
SIZES = (14, 112)

Build = Callable[[int], tuple[nn.Module, tuple[Tensor, ...]]]


class Computed(nn.Module):
    """A function of maps."""

    def __init__(self, formula: Callable[..., Tensor]) -> None:
        super().__init__()
        self.formula = formula

    def forward(self, *x: Tensor) -> Tensor:
        """Return the formula's value."""
        return self.formula(*x)


def _maps(count: int, side: int, channels: int = CHANNELS) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(1, channels, side, side, generator=generator) for _ in range(count))


def _of(formula: Callable[..., Tensor], count: int) -> Build:
    return lambda side: (Computed(formula), _maps(count, side))


def _gate(name: str) -> Build:
    def build(side: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
        module = gates.build(name, CHANNELS)
        return module, _maps(module.maps, side)

    return build


def _blend(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return x * w + y * (1 - w)


def _around(x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    return x * (1 + t) + y * (1 - t)


def _weighed(scores: Tensor, maps: Tensor) -> Tensor:
    return (maps * torch.unflatten(scores, 1, (-1, CHANNELS)).softmax(1)).sum(1)


def _branches(count: int) -> Build:
    """Return maps that are stacked, and a score for each channel of each."""

    def build(side: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
        scores = _maps(1, 1, count * CHANNELS)
        return Computed(lambda a, *x: _weighed(a, torch.stack(x, 1))), scores + _maps(count, side)

    return build


def _parts(side: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return one wide map of two parts, and scores."""
    module = Computed(lambda a, x: _weighed(a, x.unflatten(1, (2, CHANNELS))))
    return module, _maps(1, 1, 2 * CHANNELS) + _maps(1, side, 2 * CHANNELS)


class _Triplet(nn.Module):
    """Triplet attention as published: contiguous copies, and maxima with their places."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(2, 1, 7, padding=3, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of three gated maps."""
        total = torch.zeros(())
        for conv, order in zip(self.convs, ((0, 2, 1, 3), (0, 3, 2, 1), (0, 1, 2, 3)), strict=True):
            turned = x.permute(order).contiguous()
            weights = conv(_largest_and_mean(turned)).sigmoid()
            total = total + (turned * weights).permute(order).contiguous()
        return total / 3


def _largest_and_mean(x: Tensor) -> Tensor:
    return torch.cat([x.max(1)[0].unsqueeze(1), x.mean(1).unsqueeze(1)], 1)


class _Pooled(nn.Module):
    """Channel attention of mean and maximum, by adaptive pools."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(CHANNELS, CHANNELS // 4, 1), nn.Conv2d(CHANNELS // 4, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated map."""
        pools = (functional.adaptive_avg_pool2d(x, 1), functional.adaptive_max_pool2d(x, 1))
        mean, largest = (self.up(self.down(pool).relu()) for pool in pools)
        return torch.as_tensor(x * (mean + largest).sigmoid())


class _Spatial(nn.Module):
    """Spatial attention of mean and maximum, with the places of the maxima."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated map."""
        return torch.as_tensor(x * self.conv(_largest_and_mean(x)).sigmoid())


def _expanded(x: Tensor, g: Tensor) -> Tensor:
    return x * g.sigmoid().expand_as(x)


class _Tiled(nn.Module):
    """A map, and a vector beside each of its places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        """Return the fused map."""
        return torch.as_tensor(self.conv(torch.cat([x, g.expand_as(x)], 1)))


def _module(kind: type[nn.Module], *more: int) -> Build:
    """Return a module of one map, and of vectors with so many channels."""

    def build(side: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
        torch.manual_seed(0)
        return kind(), _maps(1, side) + tuple(torch.randn(1, n, 1, 1) for n in more)

    return build


def _gated(side: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Computed(_expanded), (*_maps(1, side), torch.randn(1, CHANNELS, 1, 1))


_PUBLISHED = "CBAM, BAM and triplet attention as published"

TEMPLATES = (
    Template("blend", "blend", _of(_blend, 3), SIZES, "attentional feature fusion, complementary gates"),
    Template("blend (around)", "blend", _of(_around, 3), SIZES, "local feature fusion"),
    Template("branch-softmax, 2 maps", "branch-softmax", _branches(2), SIZES, "skresnet, skresnext"),
    Template("branch-softmax, 4 maps", "branch-softmax", _branches(4), SIZES, "feature aggregation"),
    Template("branch-softmax, parts", "branch-softmax", _parts, SIZES, "resnest"),
    Template("branch-sum", "branch-sum", _of(lambda *x: torch.stack(x, 1).sum(1), 2), SIZES, "skresnet"),
    Template(
        "squeeze-excite", "squeeze-excite", _gate("squeeze-excite"), SIZES, "seresnet, efficientnet, regnety"
    ),
    Template("adaptive pools", "global-pool", _module(_Pooled), SIZES, "CBAM as published"),
    Template("pools of channels", "global-pool", _module(_Spatial), SIZES, _PUBLISHED),
    Template("triplet attention", "exact", _module(_Triplet), SIZES, "as published"),
    Template("expanded weights", "unmoved-gates", _gated, SIZES, "SENet, ECA-Net as published"),
    Template(
        "tiled vector", "split-sources", _module(_Tiled, CHANNELS), SIZES, "conditioning by concatenation"
    ),
)
