"""Weights of the models trained here: safetensors files with their measured quality in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ["FOLDER", "load_into", "quality", "save"]

FOLDER = Path(__file__).resolve().parent / "data"
"""Where the committed weights are."""


def save(model: nn.Module, name: str, measured: Mapping[str, float | int], folder: Path = FOLDER) -> None:
    """Write ``name.safetensors`` and ``name.json`` (the measured quality) into ``folder``."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(dict(measured), indent=1) + "\n", encoding="utf-8")


def load_into(model: nn.Module, name: str, folder: Path = FOLDER) -> nn.Module:
    """Load ``name.safetensors`` into ``model`` and return it in evaluation mode, without gradients."""
    from safetensors.torch import load_file

    model.load_state_dict(load_file(folder / f"{name}.safetensors"))
    return model.eval().requires_grad_(False)


def quality(name: str, folder: Path = FOLDER) -> dict[str, float | int]:
    """Return what was measured on held-out data right after training."""
    measured: dict[str, float | int] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return measured
