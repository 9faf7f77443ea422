"""What a map of attention weights looks like: plain functions with their definitions.

``weights`` is ``[..., queries, keys]``. A row is read as shares ``p = |w| / Σ|w|``, as the weights of some
forms are negative in places; a row without any weight gives NaN. Everything is computed in float64.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

__all__ = ["AttentionStatistics", "effective_rank", "entropy", "mean_distance", "sink_mass", "top_mass"]

SINKS = 1
"""Keys at the start that `sink_mass` counts by default."""

TOP = 8
"""Keys per query that `top_mass` counts by default."""

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class AttentionStatistics:
    """Means over batch, queries and inputs, one number per head.

    Parameters
    ----------
    entropy, sink_mass, mean_distance, effective_rank, top_mass
        As the functions of this module; NaN for a head that gives no query any weight.
    """

    entropy: tuple[float, ...]
    sink_mass: tuple[float, ...]
    mean_distance: tuple[float, ...]
    effective_rank: tuple[float, ...]
    top_mass: tuple[float, ...]

    def to_dict(self) -> dict[str, tuple[float, ...]]:
        """Return the statistics by name."""
        return asdict(self)


def entropy(weights: Array) -> Array:
    """Return ``-Σ p ln p`` per query, in nats: 0 for one key, ``ln n`` for ``n`` equal ones.

    Parameters
    ----------
    weights
        ``[..., queries, keys]``.

    Returns
    -------
    numpy.ndarray
        ``[..., queries]``.

    References
    ----------
    Shannon, A Mathematical Theory of Communication, 1948, §6; as a sign of collapse in Zhai et al.,
    Stabilizing Transformer Training by Preventing Attention Entropy Collapse, 2023 (arXiv:2303.06296), §3.

    Examples
    --------
    >>> entropy([[1.0, 0.0], [0.5, 0.5]]).round(4).tolist()
    [0.0, 0.6931]
    """
    p = _shares(weights)
    logs = np.log(np.where(p > 0, p, 1.0))
    return np.asarray(0.0 - (p * logs).sum(axis=-1))


def sink_mass(weights: Array, sinks: int = SINKS) -> Array:
    """Return the share of the first ``sinks`` keys, per query.

    Parameters
    ----------
    weights
        ``[..., queries, keys]``.
    sinks
        How many keys at the start are sinks.

    Returns
    -------
    numpy.ndarray
        ``[..., queries]``, between 0 and 1.

    References
    ----------
    Xiao et al., Efficient Streaming Language Models with Attention Sinks, 2023 (arXiv:2309.17453), §3.1.

    Examples
    --------
    >>> sink_mass([[0.75, 0.25, 0.0]]).tolist()
    [0.75]
    """
    return np.asarray(_shares(weights)[..., :sinks].sum(axis=-1))


def mean_distance(weights: Array, queries: Array, keys: Array) -> Array:
    """Return how far away the keys are that a query attends to: ``Σ p(i, j) ‖x(i) - x(j)‖₂``.

    Parameters
    ----------
    weights
        ``[..., queries, keys]``.
    queries, keys
        Positions ``[queries, axes]`` and ``[keys, axes]``: one axis for a sequence, two for an image. A token
        that has no position is NaN; what it is given, or gives, does not count.

    Returns
    -------
    numpy.ndarray
        ``[..., queries]``, in tokens.

    References
    ----------
    Dosovitskiy et al., An Image is Worth 16x16 Words, 2020 (arXiv:2010.11929), §4.5 and appendix D.7; for
    text Vig and Belinkov, Analyzing the Structure of Attention in a Transformer Language Model, 2019
    (arXiv:1906.04284), §4.3.

    Examples
    --------
    >>> at = np.arange(3.0)[:, None]
    >>> mean_distance([[0.5, 0.0, 0.5]], at[:1], at).tolist()
    [1.0]
    """
    apart = np.asarray(keys, np.float64)[None] - np.asarray(queries, np.float64)[:, None]
    distance = np.sqrt((apart**2).sum(axis=-1))
    placed = np.isfinite(distance)
    p = _shares(np.where(placed, weights, 0.0))
    return np.asarray((p * np.where(placed, distance, 0.0)).sum(axis=-1))


def effective_rank(weights: Array) -> Array:
    """Return ``exp(-Σ s ln s)`` of the singular values, which are divided by their sum.

    It is 1 for a map whose rows are all alike, and ``n`` for the unit matrix of ``n`` rows.

    Parameters
    ----------
    weights
        ``[..., queries, keys]``; rows that are not finite are left out.

    Returns
    -------
    numpy.ndarray
        ``[...]``.

    References
    ----------
    Roy and Vetterli, The Effective Rank: a Measure of Effective Dimensionality, EUSIPCO 2007, definition 1.

    Examples
    --------
    >>> effective_rank(np.eye(3)).round(6).item()
    3.0
    >>> effective_rank(np.ones((4, 5))).round(6).item()
    1.0
    """
    found = np.asarray(weights, np.float64)
    found = np.where(np.isfinite(found).all(axis=-1, keepdims=True), found, 0.0)
    values = np.linalg.svd(found, compute_uv=False)
    return np.asarray(np.exp(entropy(values)))


def top_mass(weights: Array, top: int = TOP) -> Array:
    """Return the share of the ``top`` keys with the largest shares, per query.

    Parameters
    ----------
    weights
        ``[..., queries, keys]``.
    top
        How many keys; all of them where there are fewer.

    Returns
    -------
    numpy.ndarray
        ``[..., queries]``, between 0 and 1.

    References
    ----------
    Gupta et al., Memory-efficient Transformers via Top-k Attention, 2021 (arXiv:2106.06899), §2.

    Examples
    --------
    >>> top_mass([[0.5, 0.25, 0.125, 0.125]], top=2).tolist()
    [0.75]
    """
    p = _shares(weights)
    count = min(top, p.shape[-1])
    return np.asarray(np.partition(p, p.shape[-1] - count, axis=-1)[..., p.shape[-1] - count :].sum(axis=-1))


def _shares(weights: Array) -> Array:
    sizes = np.abs(np.asarray(weights, np.float64))
    total = sizes.sum(axis=-1, keepdims=True)
    shares: Array = np.divide(sizes, total, out=np.full_like(sizes, np.nan), where=total > 0)
    return shares
