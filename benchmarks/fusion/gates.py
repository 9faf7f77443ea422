"""Templates of gates and fusion blocks; sizes are the side of square maps of 64 channels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

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
    return (maps * scores.unflatten(1, (-1, CHANNELS)).softmax(1)).sum(1)


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
)
