"""The two models trained here, with their committed weights."""

from __future__ import annotations

import torch

from rewriter.models_zoo import byte_lm, digits_vit, weights
from rewriter.models_zoo.zoo_model import Run, ZooModel

__all__ = ["load_byte_lm", "load_digits_vit"]


class _AsModule(torch.nn.Module):
    """A `Run` in the place of a module."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.run(*inputs)[0])


def load_digits_vit() -> ZooModel:
    """Load the digits transformer: images ``[N, 8, 8]`` to class scores ``[N, 10]``."""
    return ZooModel(
        "digits-vit",
        "Image transformer on 8 x 8 digits, trained here, 4 layers, 4 heads, 65 tokens",
        "Apache-2.0",
        weights.load_into(digits_vit.DigitsViT(), "digits-vit"),
        digits_vit.example_inputs(),
        lambda run: {"accuracy": digits_vit.accuracy(_AsModule(run))},
        ({0: torch.export.Dim("batch", min=1, max=4096)},),
    )


def load_byte_lm() -> ZooModel:
    """Load the byte-level language model: bytes ``[N, S]`` to scores of the next byte ``[N, S, 256]``."""
    return ZooModel(
        "byte-lm",
        "Byte-level causal language model, trained here, 4 layers, 6 query on 2 key/value heads, rotary",
        "Apache-2.0",
        weights.load_into(byte_lm.ByteLM(), "byte-lm"),
        byte_lm.example_inputs(),
        lambda run: {"bits_per_byte_1024": byte_lm.bits_per_byte(_AsModule(run))},
        ({0: torch.export.Dim("batch", min=1, max=1024), 1: torch.export.Dim("length", min=2, max=65536)},),
    )
