"""Tensors of any runtime as numpy arrays, and as tensors of PyTorch.

bfloat16 travels as `ml_dtypes.bfloat16`. PyTorch is imported only where a tensor of it is met or made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = ["to_numpy", "to_torch"]


def to_numpy(x: Any) -> np.ndarray:
    """Return a torch tensor, an array or a number as a numpy array; the memory is shared where it can be."""
    if not hasattr(x, "detach"):
        return np.asarray(x)
    import torch

    tensor: torch.Tensor = x.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.resolve_neg().resolve_conj().numpy()


def to_torch(x: Any) -> torch.Tensor:
    """Return a tensor as it is, and an array or a number as a tensor that owns its memory."""
    import torch

    if isinstance(x, torch.Tensor):
        return x
    array = np.array(x, order="C")
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
