"""Tensors of PyTorch as numpy arrays, and back; bfloat16 travels as `ml_dtypes.bfloat16`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

__all__ = ["to_numpy", "to_torch"]


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor as numpy; the memory is shared where it can be."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.resolve_neg().resolve_conj().numpy()


def to_torch(array: Any) -> torch.Tensor:
    """Return a tensor as it is, and an array or a number as a tensor that owns its memory."""
    if isinstance(array, torch.Tensor):
        return array
    array = np.array(array, order="C")
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
