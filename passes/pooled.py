"""The pass ``pooled``."""

from __future__ import annotations

from typing import Unpack

from rewriter.engine import Options, Pass
from rewriter.kernels.pooled.form import Pooled

__all__ = ["PooledAttention"]


class PooledAttention(Pass):
    """Lets every query see its neighbours key by key, and all other keys as averages of cells.

    Before: every query meets every key. After: tiles of queries meet the keys around them and one average for
    each cell of the others, which counts for as many keys, in one softmax: nothing is hidden, far keys are
    coarse.

    Applies when
        there are as many keys as queries on one axis, causal or not, or on a grid of known size.
    Refuses when
        the site is of another kind, has another normaliser, mixes its heads, changes scores or weights, has
        constant keys, is cross-attention or stands behind a cache, has a bias or a mask that differs by query
        (its own causal mask aside), or does not fit the grid.
    Numbers
        Approximate, training-free; exact where every key is proved to be seen key by key: a window as long as
        the sequence, or cells of one key. Hidden keys count in no average. A query that sees nothing gives 0.

    Parameters
    ----------
    window, pool, stride, sinks, grid
        See `rewriter.kernels.pooled.form.Pooled`.
    select
        Which sites; see `rewriter.selectors`.
    options
        See `rewriter.engine.Options`.

    Examples
    --------
    ``rewriter rewrite model.onnx -o out.onnx --apply pooled:window=16,grid=auto --budget 'cos>=0.98'``
    """

    form_type = Pooled

    def __init__(
        self,
        window: int | str,
        pool: int | str = 4,
        stride: int | str | None = None,
        sinks: int | str = "auto",
        grid: str | None = None,
        *,
        select: str = "all",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(Pooled(window, pool, stride, sinks, grid), select, **options)
