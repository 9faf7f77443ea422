"""Weights of gates: read from a file, one per site."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rewriter.kernels.softmax.fitted import read_arrays

__all__ = ["GateWeights", "read_gate"]


@dataclass(frozen=True, eq=False)
class GateWeights:
    """What opens the gates of a site: ``sigmoid(weight[h] · q + bias[h])``.

    Parameters
    ----------
    weight
        ``[H, D]``, or None.
    bias
        ``[H]``, or one number for all heads.
    """

    weight: np.ndarray | None
    bias: np.ndarray


def read_gate(path: str) -> GateWeights:
    """Read ``weight`` and ``bias`` from a ``.npz`` file.

    Raises
    ------
    ValueError
        With the reason, if it is no such file.
    """
    found = read_arrays(path, {"weight": 2}, {"bias": 1})
    weight = found["weight"]
    bias = found.get("bias", np.zeros(weight.shape[:1], np.float32))
    if bias.shape != weight.shape[:1]:
        raise ValueError(
            f"weights {path}: expected weight [heads, features] and bias [heads],"
            f" found {list(weight.shape)} and {list(bias.shape)}"
        )
    if not np.isfinite(weight).all() or np.isnan(bias).any():
        raise ValueError(f"weights {path}: expected finite numbers")
    return GateWeights(weight, bias)
