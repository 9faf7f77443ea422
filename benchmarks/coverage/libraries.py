"""Where architectures come from."""

from __future__ import annotations

import torch

from benchmarks.coverage import hf_models, timm_models
from benchmarks.coverage.hf_models import NotOfferedError

__all__ = ["LIBRARIES", "NotOfferedError", "architectures", "build"]

LIBRARIES = ("transformers", "timm")


def architectures(library: str) -> list[str]:
    """Return the names of a library's architectures."""
    if library == "transformers":
        return hf_models.model_types()
    return sorted(timm_models.MODELS)


def build(library: str, name: str, implementation: str) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """Return a small model of an architecture, and example inputs."""
    if library == "transformers":
        return hf_models.build(name, implementation)
    return timm_models.build(name, implementation)
