"""A module whose keys are hidden by what is added to the scores."""

from __future__ import annotations

import torch

__all__ = ["Padded"]


class Padded(torch.nn.Module):
    """One attention to keys that a mask hides by adding a number, or that each head weighs."""

    def __init__(self, fill: float, heads: int = 1) -> None:
        super().__init__()
        self.fill, self.own = fill, torch.nn.Parameter(torch.randn(heads, 1, 9))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hiding = (1 - mask[:, None, None, :].float()) * self.fill
        if len(self.own) > 1:
            hiding = hiding + self.own
        found: torch.Tensor = (x @ x.transpose(-1, -2) / 8**0.5 + hiding).softmax(-1) @ x
        return found
