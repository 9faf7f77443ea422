"""Arrays that break things: mask patterns, ties, huge values; one function per pattern, all seeded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["BOOLEAN", "additive", "keep_mask", "normal", "random_keep"]

Rng = np.random.Generator
Shape = tuple[int, ...]


def normal(rng: Rng, shape: Shape, dtype: np.dtype, scale: float = 1.0) -> np.ndarray:
    """Return normal random numbers times ``scale``."""
    return np.asarray(rng.standard_normal(shape) * scale).astype(dtype)


def random_keep(rng: Rng, shape: Shape) -> np.ndarray:
    """Return a random boolean array with at least one True in every row (last axis)."""
    keep = np.asarray(rng.random(shape) < 0.6)
    if keep.size and keep.ndim:
        at = rng.integers(shape[-1], size=shape[:-1])
        np.put_along_axis(keep, at[..., None], True, axis=-1)
    return keep


def _left_padding(rng: Rng, shape: Shape) -> np.ndarray:
    return _padding(rng, shape)


def _right_padding(rng: Rng, shape: Shape) -> np.ndarray:
    return _padding(rng, shape)[..., ::-1].copy() if shape else np.ones(shape, dtype=bool)


def _padding(rng: Rng, shape: Shape) -> np.ndarray:
    if not shape:
        return np.ones(shape, dtype=bool)
    # the pad length differs per batch item only, as a tokenizer makes it; at least one key stays
    length = shape[-1]
    batch = shape[0] if len(shape) > 1 else 1
    pad = rng.integers(0, max(1, length), size=batch)
    pad[0] = max(0, length // 2)
    keep = np.arange(length)[None, :] >= pad[:, None]
    keep = keep.reshape(batch, *([1] * (len(shape) - 2)), length) if len(shape) > 1 else keep[0]
    return np.broadcast_to(keep, shape).copy()


def _one_row_empty(rng: Rng, shape: Shape) -> np.ndarray:
    keep = random_keep(rng, shape)
    if keep.ndim and keep.size:
        keep.reshape(-1, shape[-1])[0] = False
    return keep


def _one_row_full(rng: Rng, shape: Shape) -> np.ndarray:
    return ~_one_row_empty(rng, shape)


BOOLEAN: dict[str, Callable[[Rng, Shape], np.ndarray]] = {
    "random": random_keep,
    "all true": lambda _, shape: np.ones(shape, dtype=bool),
    "all false": lambda _, shape: np.zeros(shape, dtype=bool),
    "left padding": _left_padding,
    "right padding": _right_padding,
    "a row all false": _one_row_empty,
    "a row all true": _one_row_full,
}
"""Boolean patterns by name. Which truth value hides a key is not known: both kinds of full row are here."""


def keep_mask(name: str, rng: Rng, shape: Shape, dtype: np.dtype) -> np.ndarray:
    """Return the named pattern as booleans, or as 0 and 1 in another dtype."""
    return np.asarray(BOOLEAN[name](rng, shape)).astype(dtype)


def additive(name: str, rng: Rng, shape: Shape, dtype: np.dtype, low: float = -np.inf) -> np.ndarray:
    """Return the named pattern as numbers added to scores: 0 where True, ``low`` where False."""
    return np.where(BOOLEAN[name](rng, shape), 0.0, low).astype(dtype)
