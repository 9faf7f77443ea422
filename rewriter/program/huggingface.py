"""Folders in Hugging Face layout: ``config.json`` and ``*.safetensors``, opened with transformers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from rewriter.errors import InputError
from rewriter.program.fx import FxProgram, trace

__all__ = ["load_directory", "trace_model"]

LENGTH = 32
"""Tokens in the example input of a text model."""


def load_directory(path: str | os.PathLike[str], length: int = LENGTH, dynamic: bool = False) -> FxProgram:
    """Open a model folder.

    Parameters
    ----------
    length
        Tokens in the example input.
    dynamic
        Let batch and length vary.

    Raises
    ------
    InputError
        If the folder holds no model, or transformers is not installed or cannot build it.
    """
    folder = Path(path)
    config = folder / "config.json"
    if not config.is_file() or not any(folder.glob("*.safetensors")):
        raise InputError(f"{folder}: no model in this folder; expected config.json and *.safetensors")
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise InputError(f"{folder}: opening it needs transformers; run: pip install 'rewriter[hf]'") from error
    try:
        names = json.loads(config.read_text(encoding="utf-8")).get("architectures") or []
        architecture = getattr(transformers, names[0], None) if names else None
        kind = architecture or transformers.AutoModel
        model = kind.from_pretrained(folder, local_files_only=True, attn_implementation="eager").eval()
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError, ImportError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"{folder}: transformers cannot open it: {first.strip()}") from error
    program = trace_model(model, length, dynamic)
    program.source = str(folder)
    return program


def trace_model(model: torch.nn.Module, length: int = LENGTH, dynamic: bool = False) -> FxProgram:
    """Trace a transformers model on example inputs made from its configuration."""
    inputs = _example(model, length)
    shapes: dict[str, Any] | None = None
    if dynamic:
        batch, tokens = torch.export.Dim("batch", max=1024), torch.export.Dim("length", max=131072)
        axes = {"input_ids": (batch, tokens), "attention_mask": (batch, tokens), "pixel_values": (batch,)}
        shapes = {"inputs": tuple(dict(enumerate(axes.get(n, ()))) for n in inputs)}
    return trace(_Outputs(model, tuple(inputs)), tuple(inputs.values()), dynamic_shapes=shapes)


def _example(model: torch.nn.Module, length: int) -> dict[str, torch.Tensor]:
    config: Any = model.config
    generator = torch.Generator().manual_seed(0)
    main = getattr(model, "main_input_name", "input_ids")
    if main == "pixel_values":
        side = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
        channels = getattr(config, "num_channels", 3)
        return {"pixel_values": torch.randn(1, channels, side, side, generator=generator)}
    vocabulary = getattr(config, "vocab_size", 100)
    ids = torch.randint(0, vocabulary, (1, length), generator=generator)
    if main == "input_features":
        frames = 2 * config.max_source_positions
        features = torch.randn(1, config.num_mel_bins, frames, generator=generator)
        return {"input_features": features, "decoder_input_ids": ids}
    found = {"input_ids": ids}
    if getattr(config, "is_encoder_decoder", False):
        found["decoder_input_ids"] = ids.flip(1).contiguous()
    elif not getattr(config, "is_decoder", False) and not hasattr(config, "num_key_value_heads"):
        found["attention_mask"] = torch.ones(1, length, dtype=torch.int64)
    return found


class _Outputs(torch.nn.Module):
    """Calls a model by input names, without a cache."""

    def __init__(self, model: torch.nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: torch.Tensor) -> Any:
        extra = {"use_cache": False} if hasattr(self.model.config, "use_cache") else {}
        return self.model(**dict(zip(self.names, inputs, strict=True)), **extra, return_dict=False)
