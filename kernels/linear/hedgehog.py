"""Learned features: projections of a head's queries and keys, and a softmax over them and their negatives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rewriter.kernels.softmax.fitted import read_arrays
from rewriter.lower.emitter import Emitter, Handle
from rewriter.sites.site import AttentionSite

__all__ = ["Projection", "Projections", "emit_features", "read_projections", "why_not_these"]


@dataclass(frozen=True, eq=False)
class Projection:
    """What becomes of one operand: ``softmax([y, -y])`` over ``y = x weight[h] + bias[h]``.

    Parameters
    ----------
    weight
        ``[H, D, F]``.
    bias
        ``[H, F]``.
    """

    weight: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True, eq=False)
class Projections:
    """Those of the queries, one per head, and of the keys, one per head of keys."""

    q: Projection
    k: Projection

    @property
    def features(self) -> int:
        """How many features a token has."""
        return 2 * int(self.q.weight.shape[2])


def read_projections(path: str) -> Projections:
    """Read ``q`` and ``k``, ``[heads, width, features]``, and ``q_bias`` and ``k_bias``, 0 if missing.

    Raises
    ------
    ValueError
        With the reason, if it is no such file.
    """
    found = read_arrays(path, {"q": 3, "k": 3}, {"q_bias": 2, "k_bias": 2})
    made = []
    for name in "qk":
        weight = found[name]
        heads, _, features = weight.shape
        bias = found.get(f"{name}_bias", np.zeros((heads, features), weight.dtype))
        if bias.shape != (heads, features):
            raise ValueError(
                f"weights {path}: {name}_bias is {list(bias.shape)}; expected {[heads, features]}"
            )
        made.append(Projection(weight, bias))
    q, k = made
    if q.weight.shape[1:] != k.weight.shape[1:] or not all(q.weight.shape):
        raise ValueError(
            f"weights {path}: q is {list(q.weight.shape)} and k {list(k.weight.shape)}; expected the same"
            " width and number of features"
        )
    if not all(np.isfinite(array).all() for array in found.values()):
        raise ValueError(f"weights {path}: expected finite numbers")
    return Projections(q, k)


def why_not_these(path: str, site: AttentionSite) -> str | None:
    """Return why the projections of a file are not for a site, or None."""
    try:
        found = read_projections(path)
    except ValueError as error:
        return f"{site.id}: {error}"
    heads, width, _ = found.q.weight.shape
    if (site.heads.known(), site.kv_heads.known(), site.qk_dim.known()) == (
        heads,
        len(found.k.weight),
        width,
    ):
        return None
    return (
        f"{site.id} has {site.heads} heads on {site.kv_heads} with {site.qk_dim} features; weights {path} are"
        f" for {heads} on {len(found.k.weight)} with {width}"
    )


def emit_features(e: Emitter, x: Handle, by: Projection) -> Handle:
    """Emit ``[B, H, N, 2 F]`` for tokens ``[B, H, N, D]``."""
    dtype = e.dtype(x)
    y = e.matmul(x, e.constant(by.weight[None], dtype))
    if by.bias.any():
        y = e.map("add", y, e.constant(by.bias[None, :, None], dtype))
    return e.softmax(e.concat([y, e.map("neg", y)], 3), 3)
