"""Attention in float64 with numpy: what both emitters are held to."""

from __future__ import annotations

import numpy as np

__all__ = ["attended"]


def attended(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    scale: float,
    bias: np.ndarray | None = None,
    causal: bool = False,
    empty: float = np.nan,
    softcap: float | None = None,
    sink: np.ndarray | None = None,
) -> np.ndarray:
    """Return softmax attention; rows that see no key and no sink give ``empty``."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.swapaxes(-1, -2) * scale
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias.astype(np.float64)
    if causal:
        scores = np.where(np.tri(*scores.shape[-2:]) == 1, scores, -np.inf)
    top = scores.max(-1, keepdims=True)
    if sink is not None:
        top = np.maximum(top, sink.astype(np.float64).max(-1, keepdims=True))
    top = np.where(np.isfinite(top), top, 0)
    weights = np.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    if sink is not None:
        total = total + np.exp(sink.astype(np.float64) - top).sum(-1, keepdims=True)
    found: np.ndarray = np.where(total == 0, empty, weights @ v / np.where(total == 0, 1, total))
    return found
