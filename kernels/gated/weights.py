"""Weights of gates: read from a file, one per site."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
    try:
        with np.load(Path(path), allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"weights {path}: not a readable .npz of plain arrays ({error})") from error
    if "weight" not in found or found.keys() - {"weight", "bias"}:
        names = ", ".join(sorted(found)) or "nothing"
        raise ValueError(f"weights {path}: expected weight [heads, features] and bias [heads], found {names}")
    weight = found["weight"]
    bias = found.get("bias", np.zeros(weight.shape[:1], np.float32))
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise ValueError(
            f"weights {path}: expected weight [heads, features] and bias [heads],"
            f" found {list(weight.shape)} and {list(bias.shape)}"
        )
    if (
        weight.dtype.kind != "f"
        or bias.dtype.kind != "f"
        or not np.isfinite(weight).all()
        or np.isnan(bias).any()
    ):
        raise ValueError(f"weights {path}: expected finite floating-point numbers")
    return GateWeights(weight, bias)
