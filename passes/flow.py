"""The pass ``flow``."""

from __future__ import annotations

from typing import Unpack

from rewriter.engine import Options, Pass
from rewriter.kernels.flow.form import Flow

__all__ = ["FlowAttention"]


class FlowAttention(Pass):
    """Replaces the softmax by flows from keys to queries that are conserved, each a sum over tokens.

    Before: every query meets every key. After: sums of features of queries and of keys; keys compete for what
    flows out, queries are allocated what flows in.

    Applies when
        every query sees every key with an unchanged score (self- or cross-attention, given or learned
        queries), or itself and every key before it.
    Refuses when
        the site is of another kind, has another normaliser, a soft cap or sinks, mixes its heads, changes
        scores or weights, or is masked or biased otherwise.
    Numbers
        Another function: unusable on a model that was trained with a softmax, for training or fitting.

    Parameters
    ----------
    select
        Which sites; see `rewriter.selectors`.
    options
        See `rewriter.engine.Options`.

    Examples
    --------
    ``rewriter rewrite model.onnx -o out.onnx --apply flow --no-budget``
    """

    form_type = Flow

    def __init__(self, *, select: str = "all", **options: Unpack[Options]) -> None:
        super().__init__(Flow(), select, **options)
