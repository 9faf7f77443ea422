"""Gates and fusion blocks as their papers' formulas have them: small modules with fixed random weights.

Maps are ``[B, C, H, W]``; the places of a map are its pairs ``(h, w)``. Every module keeps the shape of its
first map.

>>> import torch
>>> build("squeeze-excite", channels=8)(torch.ones(1, 8, 5, 4)).shape
torch.Size([1, 8, 5, 4])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MODULES", "build"]


def _mlp(channels: int, reduced: int, last: int | None = None) -> nn.Sequential:
    """Return two 1×1 convolutions with a relu between."""
    return nn.Sequential(nn.Conv2d(channels, reduced, 1), nn.ReLU(), nn.Conv2d(reduced, last or channels, 1))


class Gate(nn.Module):
    """A module over one map.

    Parameters
    ----------
    channels
        Of the map; a multiple of 4.
    """

    maps: ClassVar[int] = 1

    def __init__(self, channels: int) -> None:
        super().__init__()


class SqueezeExcite(Gate):
    """``x · sigmoid(mlp(mean of x over places))``: Hu, Shen, Sun, 2018, equations 2 to 4."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.mlp = _mlp(channels, channels // 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated map."""
        gated: Tensor = x * self.mlp(x.mean((2, 3), keepdim=True)).sigmoid()
        return gated


class EffectiveSqueezeExcite(Gate):
    """``x · hard_sigmoid(linear(mean of x))``: Lee, Park, 2020, section 3.3."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.linear = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated map."""
        gated: Tensor = x * F.hardsigmoid(self.linear(x.mean((2, 3), keepdim=True)))
        return gated


class EfficientChannel(Gate):
    """``x · sigmoid(conv over channels of the mean)``: Wang and others, ECA-Net, 2020, equation 6."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated map."""
        pooled = x.mean((2, 3)).unsqueeze(1)
        gated: Tensor = x * self.conv(pooled).sigmoid().transpose(1, 2).unsqueeze(-1)
        return gated


class MeanAndMaxChannel(Gate):
    """``x · sigmoid(mlp(mean) + mlp(max))``: Woo and others, CBAM, 2018, equation 2."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.mlp = _mlp(channels, channels // 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated map."""
        weight = self.mlp(x.mean((2, 3), keepdim=True)) + self.mlp(x.amax((2, 3), keepdim=True))
        gated: Tensor = x * weight.sigmoid()
        return gated


class MeanAndMaxSpatial(Gate):
    """``x · sigmoid(conv([mean, max] of x over channels))``: Woo and others, CBAM, 2018, equation 3."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated map."""
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        gated: Tensor = x * self.conv(pooled).sigmoid()
        return gated


class GlobalContext(Gate):
    """``x + mlp(sum over places of x · softmax(w x))``: Cao and others, GCNet, 2019, equation 6."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.key = nn.Conv2d(channels, 1, 1)
        self.mlp = _mlp(channels, channels // 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map with its context added."""
        weights = self.key(x).flatten(2).softmax(-1)
        context = x.flatten(2) @ weights.transpose(1, 2)
        gated: Tensor = x + self.mlp(context.unsqueeze(-1))
        return gated


class Coordinate(Gate):
    """``x · g_h · g_w`` of the means over rows and columns: Hou, Zhou, Feng, 2021, equations 4 to 9."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.shared = nn.Sequential(
            nn.Conv2d(channels, channels // 4, 1), nn.BatchNorm2d(channels // 4), nn.Hardswish()
        )
        self.rows, self.columns = (nn.Conv2d(channels // 4, channels, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated map."""
        pooled = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)], 2)
        h, w = self.shared(pooled).split([x.shape[2], x.shape[3]], 2)
        gated: Tensor = x * self.rows(h).sigmoid() * self.columns(w.transpose(2, 3)).sigmoid()
        return gated


class LocalStrip(Gate):
    """``x · a_h · a_w``, each a 1-D convolution of a mean: Xu, Wan, ELA, 2024, equations 4 and 5."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.conv = nn.Conv1d(channels, channels, 5, padding=2, groups=channels, bias=False)
        self.norm = nn.GroupNorm(4, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated map."""
        h, w = (self.norm(self.conv(x.mean(axis))).sigmoid() for axis in (3, 2))
        gated: Tensor = x * h.unsqueeze(3) * w.unsqueeze(2)
        return gated


class Triplet(Gate):
    """The mean of three gates, each over another pair of axes: Misra and others, 2021, equation 3."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.convs = nn.ModuleList(nn.Conv2d(2, 1, 7, padding=3, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated map."""
        total = None
        for conv, axis in zip(self.convs, (2, 3, 1), strict=True):
            turned = x.transpose(1, axis)
            pooled = torch.cat([turned.amax(1, keepdim=True), turned.mean(1, keepdim=True)], 1)
            gated = (turned * conv(pooled).sigmoid()).transpose(1, axis)
            total = gated if total is None else total + gated
        assert total is not None
        mean: Tensor = total / 3
        return mean


class Polarised(Gate):
    """A channel gate of a softmax over places, then a spatial one: Liu and others, 2021, equations 2 to 4."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        half = channels // 2
        self.v, self.v2, self.q2 = (nn.Conv2d(channels, half, 1) for _ in range(3))
        self.q, self.up = nn.Conv2d(channels, 1, 1), nn.Conv2d(half, channels, 1)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated map."""
        of_places = self.q(x).flatten(2).softmax(-1)
        context = self.v(x).flatten(2) @ of_places.transpose(1, 2)
        weights = self.norm(self.up(context.unsqueeze(-1)).flatten(1)).sigmoid()
        x = x * weights[:, :, None, None]
        query = self.q2(x).mean((2, 3)).softmax(1)
        seen = query.unsqueeze(1) @ self.v2(x).flatten(2)
        gated: Tensor = x * seen.unflatten(2, x.shape[2:]).sigmoid()
        return gated


class SpatialSoftmax(Gate):
    """``x · softmax over places of a map of x, + x``: Saini and others, ULSAM, 2020, equations 3 and 4."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.depth, self.point = nn.Conv2d(channels, channels, 1, groups=channels), nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated map."""
        scores = self.point(F.max_pool2d(self.depth(x), 3, stride=1, padding=1))
        gated: Tensor = x * scores.flatten(2).softmax(-1).unflatten(2, x.shape[2:]) + x
        return gated


class Subspaces(Gate):
    """The same in each of four parts of the channels: Saini and others, ULSAM, 2020, equations 3 to 5."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.parts = nn.ModuleList(SpatialSoftmax(channels // 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated parts, joined."""
        return torch.cat([gate(part) for gate, part in zip(self.parts, x.chunk(4, 1), strict=True)], 1)


class FocalModulation(Gate):
    """``q(x) · h(sum over l of c[l] · g[l])``, contexts of growing reach: Yang and others, 2022."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.split = (channels, channels, 3)
        self.project = nn.Conv2d(channels, sum(self.split), 1)
        self.levels = nn.ModuleList(
            nn.Conv2d(channels, channels, side, padding=side // 2, groups=channels) for side in (3, 5)
        )
        self.point = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the modulated map."""
        query, context, gates = self.project(x).split(self.split, 1)
        contexts = []
        for level in self.levels:
            context = F.gelu(level(context))
            contexts.append(context)
        contexts.append(F.gelu(context.mean((2, 3), keepdim=True)))
        weighed = [c * g for c, g in zip(contexts, gates.split(1, 1), strict=True)]
        gated: Tensor = query * self.point(weighed[0] + weighed[1] + weighed[2])
        return gated


class LargeKernel(Gate):
    """``x · conv(x)``, a large kernel in three steps: Guo and others, VAN, 2022, equations 1 and 2."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.near = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.far = nn.Conv2d(channels, channels, 7, padding=9, dilation=3, groups=channels)
        self.point = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated map."""
        gated: Tensor = x * self.point(self.far(self.near(x)))
        return gated


class _Context(nn.Module):
    """``local(x) + global(mean of x)``: Dai and others, 2021, equation 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.near, self.far = (_mlp(channels, channels // 4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of a gate."""
        scores: Tensor = self.near(x) + self.far(x.mean((2, 3), keepdim=True))
        return scores


class AttentionalFusion(Gate):
    """``x · w + y · (1 - w)``, ``w`` of ``x + y``: Dai and others, AFF, 2021, equation 3."""

    maps = 2

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.context = _Context(channels)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the map between the two."""
        w = self.context(x + y).sigmoid()
        gated: Tensor = x * w + y * (1 - w)
        return gated


class IterativeFusion(Gate):
    """``w`` of what a first fusion gives: Dai and others, iAFF, 2021, equation 4; doubled, as published."""

    maps = 2

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.first, self.second = _Context(channels), _Context(channels)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the map between the two."""
        w = self.first(x + y).sigmoid()
        w = self.second(x * w + y * (1 - w)).sigmoid()
        gated: Tensor = 2 * x * w + 2 * y * (1 - w)
        return gated


class LocalFusion(Gate):
    """``x · (1 + t) + y · (1 - t)``, ``t`` of both joined: Chen and others, ERes2Net, 2023, equation 2."""

    maps = 2

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.scores = nn.Sequential(
            nn.Conv2d(2 * channels, channels // 4, 1), nn.SiLU(), nn.Conv2d(channels // 4, channels, 1)
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the map between the two."""
        t = self.scores(torch.cat([x, y], 1)).tanh()
        gated: Tensor = x * (1 + t) + y * (1 - t)
        return gated


class GatedConcatenation(Gate):
    """A gate over two maps joined, then reduced: Valada and others, SSMA, 2019, section 4."""

    maps = 2

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        both = 2 * channels
        self.scores = nn.Sequential(
            nn.Conv2d(both, channels // 4, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels // 4, both, 3, padding=1),
        )
        self.reduce = nn.Conv2d(both, channels, 3, padding=1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the fused map."""
        both = torch.cat([x, y], 1)
        fused: Tensor = self.reduce(both * self.scores(both).sigmoid())
        return fused


class SelectiveKernels(Gate):
    """``sum over n of x[n] · softmax(a)[n]``, ``a`` of the pooled sum: Li and others, 2019."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.paths = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=d, dilation=d, groups=channels) for d in (1, 2)
        )
        self.scores = _mlp(channels, channels // 4, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map between the paths."""
        paths = torch.stack([path(x) for path in self.paths], 1)
        scores = self.scores(paths.sum(1).mean((2, 3), keepdim=True)).unflatten(1, (2, -1))
        gated: Tensor = (paths * scores.softmax(1)).sum(1)
        return gated


class SplitAttention(Gate):
    """The same over parts of one wide map: Zhang and others, ResNeSt, 2020, equations 2 and 3."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.widen = nn.Conv2d(channels, 3 * channels, 3, padding=1, groups=4)
        self.scores = _mlp(channels, channels // 4, 3 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map between the parts."""
        parts = self.widen(x).relu().unflatten(1, (3, -1))
        scores = self.scores(parts.sum(1).mean((2, 3), keepdim=True)).unflatten(1, (3, -1))
        gated: Tensor = (parts * scores.softmax(1)).sum(1)
        return gated


class AdaptiveAggregation(Gate):
    """``sum over n of x[n] · softmax(a)[n]``, ``a`` per place: Wang and others, AFA, 2024, equation 4."""

    maps = 2

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.scores = nn.Conv2d(2 * channels, 2, 3, padding=1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the map between the two."""
        weights = self.scores(torch.cat([x, y], 1)).unsqueeze(2).softmax(1)
        gated: Tensor = (torch.stack([x, y], 1) * weights).sum(1)
        return gated


class GatedResidual(Gate):
    """``x + tanh(alpha) · f(y)``: Alayrac and others, Flamingo, 2022, section 2.2."""

    maps = 2

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.alpha = nn.Parameter(torch.full((1,), 0.3))
        self.branch = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the map with the branch let in."""
        gated: Tensor = x + self.alpha.tanh() * self.branch(y)
        return gated


MODULES: Mapping[str, Callable[[int], Gate]] = {
    "adaptive-aggregation": AdaptiveAggregation,
    "attentional-fusion": AttentionalFusion,
    "coordinate": Coordinate,
    "effective-squeeze-excite": EffectiveSqueezeExcite,
    "efficient-channel": EfficientChannel,
    "focal-modulation": FocalModulation,
    "gated-concatenation": GatedConcatenation,
    "gated-residual": GatedResidual,
    "global-context": GlobalContext,
    "iterative-fusion": IterativeFusion,
    "large-kernel": LargeKernel,
    "local-fusion": LocalFusion,
    "local-strip": LocalStrip,
    "mean-and-max-channel": MeanAndMaxChannel,
    "mean-and-max-spatial": MeanAndMaxSpatial,
    "polarised": Polarised,
    "selective-kernels": SelectiveKernels,
    "spatial-softmax": SpatialSoftmax,
    "split-attention": SplitAttention,
    "squeeze-excite": SqueezeExcite,
    "subspaces": Subspaces,
    "triplet": Triplet,
}
"""Module by name."""


def build(name: str, channels: int = 16, seed: int = 0) -> Gate:
    """Return a module with random weights, in evaluation mode.

    Parameters
    ----------
    name
        A key of `MODULES`.
    channels
        Of its maps; a multiple of 4.
    seed
        Of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODULES[name](channels).eval()
