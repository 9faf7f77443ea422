"""The pass ``gated``."""

from __future__ import annotations

import math
from typing import Unpack

from rewriter.engine import Options, Pass
from rewriter.kernels.gated.form import Gated

__all__ = ["GatedAttention"]


class GatedAttention(Pass):
    """Multiplies the result of each head by a gate between 0 and 1 that its query opens.

    Before: a head can only give a mean of values, so that one that is to do nothing needs a token without
    content to look at. After: it closes its gate. It is for models that are trained or fine-tuned with it.

    Applies when
        the site is softmax attention, whatever its spelling: of tokens or of channels, with given or learned
        queries, soft-capped or not, with sinks or without.
    Refuses when
        the site is of another kind, has another normaliser, mixes its heads, or changes scores or weights; or
        the weights cannot be read or are for other heads or features.
    Numbers
        Exact with open gates, the default; otherwise what the given weights make of it. A query that sees no
        key gives 0.

    Parameters
    ----------
    bias, weights
        See `rewriter.kernels.gated.form.Gated`.
    select
        Which sites; see `rewriter.selectors`.
    options
        See `rewriter.engine.Options`.

    Examples
    --------
    ``rewriter rewrite model.onnx -o out.onnx --apply gated:weights=gate0.npz@attention.0 --no-budget``
    """

    form_type = Gated

    def __init__(
        self,
        bias: float = math.inf,
        weights: str | None = None,
        *,
        select: str = "all",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(Gated(bias, weights), select, **options)
