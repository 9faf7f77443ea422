"""Tensors of any runtime as numpy arrays, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = ["to_numpy", "to_torch"]


def to_numpy(x: Any) -> np.ndarray:
    """Return a torch tensor, a numpy array or a number as a numpy array.

    bfloat16 becomes `ml_dtypes.bfloat16`.
    """
    if isinstance(x, np.ndarray):
        return x
    return _from_torch(x) if hasattr(x, "detach") else np.asarray(x)


def to_torch(x: np.ndarray) -> torch.Tensor:
    """Return a numpy array (`ml_dtypes.bfloat16` included) as a torch tensor that owns its memory."""
    import torch

    if x.dtype.name == "bfloat16":
        return torch.from_numpy(x.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(x))


def _from_torch(tensor: torch.Tensor) -> np.ndarray:
    import torch

    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype is torch.bfloat16:
        import ml_dtypes

        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return np.asarray(tensor.numpy())
