"""Small models of designs that people use, with random weights under which attention is not uniform."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import onnx
import torch
from torch import Tensor, nn

import rewriter
from rewriter.program.onnx import OnnxProgram
from rewriter.program.program import Program

__all__ = ["ARCHITECTURES", "captured"]

TOKENS, WIDTH, HEADS = 21, 32, 4


class _Result(nn.Module):
    """A model that takes tensors by position and returns its last hidden state."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        given: dict[str, Any] = dict(zip(self.names, inputs, strict=True))
        found: Tensor = self.model(**given).last_hidden_state
        return found


def _vit() -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import ViTConfig, ViTModel

    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH}
    config = ViTConfig(num_hidden_layers=3, num_attention_heads=HEADS, **sizes)
    model = ViTModel._from_config(config, attn_implementation="eager", add_pooling_layer=False)
    return model, {"pixel_values": torch.randn(2, 3, 32, 32)}


def _llama() -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import LlamaConfig, LlamaModel

    heads = {"num_attention_heads": HEADS, "num_key_value_heads": 2}
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "vocab_size": 99}
    config = LlamaConfig(num_hidden_layers=3, use_cache=False, **heads, **sizes)
    model = LlamaModel._from_config(config, attn_implementation="eager")
    mask = torch.ones(2, TOKENS, dtype=torch.int64)
    return model, {"input_ids": torch.randint(0, 99, (2, TOKENS)), "attention_mask": mask}


def _bart() -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import BartConfig, BartModel

    heads = {"encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS}
    layers = {"encoder_layers": 2, "decoder_layers": 2}
    sizes = {"d_model": WIDTH, "encoder_ffn_dim": 2 * WIDTH, "decoder_ffn_dim": 2 * WIDTH, "vocab_size": 99}
    config = BartConfig(use_cache=False, max_position_embeddings=64, **heads, **layers, **sizes)
    model = BartModel._from_config(config, attn_implementation="eager")
    ids = torch.randint(3, 99, (2, TOKENS)), torch.randint(3, 99, (2, TOKENS - 4))
    return model, {"input_ids": ids[0], "decoder_input_ids": ids[1]}


ARCHITECTURES: Mapping[str, Callable[[], tuple[nn.Module, dict[str, Tensor]]]] = {
    "vit": _vit,
    "llama": _llama,
    "bart": _bart,
}
"""An encoder of images, a decoder with grouped heads, an encoder-decoder."""


@cache
def captured(name: str, format_: str) -> Program:
    """Return a model as ``"fx"`` or ``"onnx"``."""
    torch.manual_seed(0)
    model, inputs = ARCHITECTURES[name]()
    for tensor in model.parameters():
        if tensor.ndim > 1:
            nn.init.normal_(tensor, std=1.3 * tensor[0].numel() ** -0.5)
    module = _Result(model, tuple(inputs)).eval()
    if format_ == "fx":
        return rewriter.trace(module, tuple(inputs.values()))
    out = io.BytesIO()
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            out,  # type: ignore[arg-type]
            dynamo=False,
            input_names=list(inputs),
            opset_version=18,
        )
    return OnnxProgram(onnx.ModelProto.FromString(out.getvalue()), name)
