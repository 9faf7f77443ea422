"""The pass ``reassociated``."""

from __future__ import annotations

from typing import Unpack

from rewriter.engine import Options, Pass
from rewriter.kernels.reassociated.form import Reassociated

__all__ = ["ReassociatedAttention"]


class ReassociatedAttention(Pass):
    """Exchanges the two products of attention that has no softmax between them.

    Before: (QKᵀ)V, which grows with the square of the length, or Q(KᵀV), which grows with the square of the
    width. After: the one that takes fewer multiplications; chunk by chunk where a causal mask stands between.

    Applies when
        the weights are products of queries and keys, times numbers and factors of the query, or plus a
        number; divided by their sum over the keys or not, causal or not, whatever queries and keys are.
    Refuses when
        the site is of another kind, changes its weights, or has another mask, a decay or a bias between its
        products; or when it is computed in the cheaper order already.
    Numbers
        Exact: the same function, in another order of sums.

    Parameters
    ----------
    select
        Which sites; see `rewriter.selectors`.
    options
        See `rewriter.engine.Options`.

    Examples
    --------
    ``rewriter rewrite model.onnx -o out.onnx --apply reassociated``
    """

    form_type = Reassociated

    def __init__(self, *, select: str = "all", **options: Unpack[Options]) -> None:
        super().__init__(Reassociated(), select, **options)
