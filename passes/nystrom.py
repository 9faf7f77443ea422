"""The pass ``nystrom``."""

from __future__ import annotations

from typing import Unpack

from rewriter.engine import Options, Pass
from rewriter.kernels.nystrom.form import Nystrom

__all__ = ["NystromAttention"]


class NystromAttention(Pass):
    """Approximates the matrix of weights by its rows and columns at a few landmarks.

    Before: every query meets every key. After: every query meets the keys of the landmarks, the queries of
    the landmarks meet every key, and a small matrix between them is inverted.

    Applies when
        queries and keys are those of the same tokens and every query sees the same keys: self-attention, with
        padding or without, with a fixed or a dynamic length.
    Refuses when
        the site is of another kind, has another normaliser, a soft cap, sinks or mixed heads, changes scores
        or weights, is cross-attention, causal or windowed, has a bias that differs from query to query, has
        fewer tokens than there are landmarks, or does not fit the grid.
    Numbers
        Approximate, training-free; exact where every token is a landmark or all are protected. The
        pseudo-inverse is computed in float32 or wider. A query whose keys are all hidden gives 0.

    Parameters
    ----------
    landmarks, protect, grid, pool, iterations
        See `rewriter.kernels.nystrom.form.Nystrom`.
    select
        Which sites; see `rewriter.selectors`.
    options
        See `rewriter.engine.Options`.

    Examples
    --------
    ``rewriter rewrite model.onnx -o out.onnx --apply nystrom:landmarks=100,protect=1,grid=auto --no-budget``
    """

    form_type = Nystrom

    def __init__(
        self,
        landmarks: int,
        protect: int = 0,
        grid: str | None = None,
        pool: str = "stride",
        iterations: int = 6,
        *,
        select: str = "all",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(Nystrom(landmarks, protect, grid, pool, iterations), select, **options)
