"""Weight absorption in public architectures, with few layers and random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rewriter.passes import UnreadQueries, WeightAbsorption
from rewriter.rules import fuse
from tests.passes.test_around_attention_public import Build, Of, bert, llama, program_of, vit

transformers = pytest.importorskip("transformers")


def siglip() -> tuple[nn.Module, Tensor]:
    """Its head pools with one learned query."""
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.SiglipVisionConfig(image_size=32, patch_size=8, **small)
    return _Pooled(transformers.SiglipVisionModel(config)), torch.randn(2, 3, 32, 32)


def perceiver() -> tuple[nn.Module, Tensor]:
    """A few latents attend to the inputs; the class query attends to the latents."""
    config = transformers.PerceiverConfig(
        num_latents=3, d_latents=32, d_model=48, num_blocks=1, num_self_attends_per_block=1,
        num_self_attention_heads=2, num_cross_attention_heads=2, num_labels=5, vocab_size=99,
        max_position_embeddings=40,
    )  # fmt: skip
    return Of(transformers.PerceiverForSequenceClassification(config)), torch.randint(0, 99, (2, 40))


class _Pooled(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(x).pooler_output


BOTH, VALUES = "keys and values are not projected", "values are not projected"
FOLDED = f"{BOTH}, queries by one matrix for both"
FIRES: list[tuple[Build, str, str]] = [
    (bert, "fx", BOTH),
    (bert, "onnx", BOTH),
    (vit, "fx", BOTH),
    (vit, "onnx", BOTH),
    (llama, "fx", VALUES),
    (siglip, "onnx", BOTH),
    (perceiver, "fx", FOLDED),
    (perceiver, "onnx", FOLDED),
]


@pytest.mark.parametrize(("build", "kind", "what"), FIRES, ids=[f"{b.__name__}, {k}" for b, k, _ in FIRES])
def test_fires(build: Build, kind: str, what: str, tmp_path: Path) -> None:
    program, x = program_of(build, kind, tmp_path)
    new, record = fuse(program, [UnreadQueries(), WeightAbsorption()])
    gains = [m.gain or "" for m in record.committed if m.rule == "weight-absorption"]
    assert gains, record.matches
    assert all(gain.startswith(f"{what}: ") for gain in gains)
    for a, b in zip(new.run(x), program.run(x), strict=True):
        torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-4, atol=1e-4)
