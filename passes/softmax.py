"""The pass ``softmax``."""

from __future__ import annotations

from typing import Unpack

from rewriter.engine import Options, Pass
from rewriter.kernels.softmax.form import Softmax

__all__ = ["SoftmaxAttention"]


class SoftmaxAttention(Pass):
    """Computes attention by the best fused operator of the target instead of the graph's own spelling.

    Before: MatMul, Mul, Add, Softmax, MatMul and whatever moves axes between them. After: one call.

    Applies when
        the site is softmax attention, whatever its spelling: of tokens or of channels, with given or learned
        queries, soft-capped or not, with sinks or without.
    Refuses when
        the site is of another kind, has another normaliser, mixes its heads, or changes scores or weights.
    Numbers
        Exact: the same function, in another order of sums. Rows that see no key keep their behaviour.

    Parameters
    ----------
    select
        Which sites; see `rewriter.selectors`.
    options
        See `rewriter.engine.Options`.

    Examples
    --------
    ``rewriter rewrite model.onnx -o out.onnx --apply softmax``
    """

    form_type = Softmax

    def __init__(self, *, select: str = "all", **options: Unpack[Options]) -> None:
        super().__init__(Softmax(), select, **options)
