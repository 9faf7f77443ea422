"""Gates that are added to the map they weigh: ``x · (1 + g)``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rewriter.blocks import blocks
from tests.blocks.graphs import CHANNELS, Computed, exported, maps, traced


class Kept(nn.Module):
    """Weights of channels, of places, or of both, beside the map itself."""

    def __init__(self, channels: bool, places: bool) -> None:
        super().__init__()
        self.channels = nn.Sequential(nn.Conv2d(CHANNELS, 4, 1), nn.ReLU(), nn.Conv2d(4, CHANNELS, 1))
        self.places = nn.Sequential(nn.Conv2d(CHANNELS, 4, 1), nn.Conv2d(4, 1, 3, padding=2, dilation=2))
        self.parts = channels, places

    def forward(self, x: Tensor) -> Tensor:
        channels, places = self.channels(x.mean((2, 3), keepdim=True)), self.places(x)
        weights = {(True, False): channels, (False, True): places}.get(self.parts)
        return x * (1 + torch.sigmoid(channels * places if weights is None else weights))


FIRES: dict[str, tuple[bool, bool]] = {
    "channel-gate": (True, False),
    "spatial-gate": (False, True),
    "elementwise-gate": (True, True),
}

KEEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "an activation": lambda x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * x**3))),
    "two of them": lambda x: x * (2 + torch.sigmoid(x.mean((2, 3), keepdim=True))),
}


@pytest.mark.parametrize("kind", ["fx", "onnx"])
@pytest.mark.parametrize("name", FIRES)
def test_fires(name: str, kind: str, tmp_path: Path) -> None:
    module = Kept(*FIRES[name]).eval()
    program = traced(module, maps(1)) if kind == "fx" else exported(module, maps(1), tmp_path)
    (block,), missed = blocks(program)
    assert block.kind == name and "sigmoid" in block.traits and not missed


@pytest.mark.parametrize("fn", KEEPS.values(), ids=KEEPS)
def test_keeps(fn: Callable[[Tensor], Tensor]) -> None:
    assert not blocks(traced(Computed(fn), maps(1)))[0]
