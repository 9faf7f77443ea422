"""The pass ``linear``."""

from __future__ import annotations

from typing import Unpack

from rewriter.engine import Options, Pass
from rewriter.kernels.linear.form import Linear

__all__ = ["LinearAttention"]


class LinearAttention(Pass):
    """Replaces the softmax by a feature map, so that keys and values are summed once for all queries.

    Before: every query meets every key. After: one sum of features of keys times values, which every query
    reads; at causal sites the sum runs along with the queries, chunk by chunk.

    Applies when
        nothing is hidden, or keys are hidden from all queries (padding), or the site is causal, or both.
    Refuses when
        the site is of another kind, has another normaliser, a soft cap or sinks, mixes its heads, changes
        scores or weights, lets a query see a window, or adds to its scores what depends on query and key;
        with `softmax` features when it is causal; with weights that cannot be read or are for other heads or
        features.
    Numbers
        Another function: unusable on a model that was trained with a softmax, for training or fitting. A
        query that sees no key gives 0.

    Parameters
    ----------
    feature_map, weights
        See `rewriter.kernels.linear.form.Linear`.
    select
        Which sites; see `rewriter.selectors`.
    options
        See `rewriter.engine.Options`.

    Examples
    --------
    ``rewriter rewrite model.onnx -o out.onnx --apply linear:feature_map=relu --no-budget``
    """

    form_type = Linear

    def __init__(
        self,
        feature_map: str = "elu",
        weights: str | None = None,
        *,
        select: str = "all",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(Linear(feature_map, weights), select, **options)
