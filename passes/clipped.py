"""The pass ``clipped``."""

from __future__ import annotations

from typing import Unpack

from rewriter.engine import Options, Pass
from rewriter.kernels.clipped.form import Clipped

__all__ = ["ClippedAttention"]


class ClippedAttention(Pass):
    """Stretches the weights of the softmax beyond 0 and 1 and cuts them off there.

    Before: softmax gives every key a weight above 0, so that a head that is to do nothing needs huge scores.
    After: small weights are exactly 0. It is for models that are trained or fine-tuned with it; one that was
    trained without it loses accuracy and gains nothing.

    Applies when
        the site is softmax attention, whatever its spelling: of tokens or of channels, with given or learned
        queries, soft-capped or not, with sinks or without.
    Refuses when
        the site is of another kind, has another normaliser, mixes its heads, or changes scores or weights; or
        gamma is to be chosen by data and no gamma keeps the error.
    Numbers
        Approximate, training-free, or calibrated where an error is given; exact with ``gamma=0, zeta=1``, the
        default. A query that sees no key gives 0.

    Parameters
    ----------
    zeta, gamma, alpha, error
        See `rewriter.kernels.clipped.form.Clipped`.
    select
        Which sites; see `rewriter.selectors`.
    options
        See `rewriter.engine.Options`.

    Examples
    --------
    ``rewriter rewrite model.onnx -o out.onnx --apply clipped:error=0.02 --data x.npz --budget 'cos>=0.99'``
    """

    form_type = Clipped

    def __init__(
        self,
        zeta: float = 1.0,
        gamma: float | None = None,
        alpha: float | None = None,
        error: float | None = None,
        *,
        select: str = "all",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(Clipped(zeta, gamma, alpha, error), select, **options)
