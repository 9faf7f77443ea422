"""The rules around attention in public architectures, with few layers and random weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rewriter
from rewriter.passes import FoldedScales, SharedProjections, StaticOperands, UnreadQueries
from rewriter.program.program import Program
from rewriter.rules import Rule, fuse

transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


class Of(nn.Module):
    """One output of a model."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__()
        self.model, self.options = model, options

    def forward(self, x: Tensor) -> Any:
        return self.model(x, **self.options)[0]


def bert() -> tuple[nn.Module, Tensor]:
    config = transformers.BertConfig(vocab_size=99, **SMALL)
    return Of(transformers.BertForSequenceClassification(config)), torch.randint(0, 99, (2, 13))


def llama() -> tuple[nn.Module, Tensor]:
    config = transformers.LlamaConfig(vocab_size=99, num_key_value_heads=2, **SMALL)
    model = transformers.LlamaForCausalLM(config)
    return Of(model, logits_to_keep=1, use_cache=False), torch.randint(0, 99, (2, 13))


def vit() -> tuple[nn.Module, Tensor]:
    config = transformers.ViTConfig(image_size=32, patch_size=8, **SMALL)
    return Of(transformers.ViTForImageClassification(config)), torch.randn(2, 3, 32, 32)


def dinov2() -> tuple[nn.Module, Tensor]:
    config = transformers.Dinov2Config(image_size=32, patch_size=8, layerscale_value=0.3, **SMALL)
    return Of(transformers.Dinov2Model(config)), torch.randn(2, 3, 32, 32)


def swin() -> tuple[nn.Module, Tensor]:
    config = transformers.SwinConfig(
        image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4
    )
    return Of(transformers.SwinForImageClassification(config)), torch.randn(1, 3, 32, 32)


Build = Callable[[], tuple[nn.Module, Tensor]]

FIRES: list[tuple[type[Rule], Build, int, str]] = [
    (UnreadQueries, bert, 1, "fx"),
    (UnreadQueries, bert, 1, "onnx"),
    (UnreadQueries, llama, 1, "fx"),
    (UnreadQueries, vit, 1, "fx"),
    (UnreadQueries, vit, 1, "onnx"),
    (SharedProjections, bert, 2, "fx"),
    (SharedProjections, bert, 2, "onnx"),
    (SharedProjections, llama, 4, "fx"),
    (FoldedScales, dinov2, 4, "fx"),
    (FoldedScales, dinov2, 4, "onnx"),
    (StaticOperands, swin, 4, "fx"),
]


def program_of(build: Build, kind: str, folder: Path) -> tuple[Program, Tensor]:
    torch.manual_seed(0)
    model, x = build()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    if kind == "fx":
        return rewriter.trace(model.eval(), (x,)), x
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), (x,), str(folder / "m.onnx"), dynamo=False, opset_version=17)
    return rewriter.load(folder / "m.onnx"), x


@pytest.mark.parametrize(
    ("rule", "build", "count", "kind"), FIRES, ids=[f"{r.name}, {b.__name__}, {k}" for r, b, _, k in FIRES]
)
def test_fires(rule: type[Rule], build: Build, count: int, kind: str, tmp_path: Path) -> None:
    program, x = program_of(build, kind, tmp_path)
    new, record = fuse(program, [rule()])
    assert len(record.committed) >= count, record.matches
    for a, b in zip(new.run(x), program.run(x), strict=True):
        torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-4, atol=1e-4)
