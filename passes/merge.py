"""The pass ``merge``."""

from __future__ import annotations

from typing import Unpack

from rewriter.engine import Options, Pass
from rewriter.kernels.merge.form import Merge

__all__ = ["MergedAttention"]


class MergedAttention(Pass):
    """Merges similar tokens for the time of an attention.

    Before: every token asks every token. After: similar tokens ask and answer as one, with the mean of their
    queries, keys and values; a merged key counts as often as there were tokens, and every token gets the
    result of what it has become part of.

    Applies when
        nothing masks or biases the scores, or only keys, alike for every query and head, as padding; queries
        and keys are one sequence, or only keys are merged.
    Refuses when
        the site is of another kind, has another normaliser, another mask or bias, changes scores or weights
        by another function than a soft cap, or ``r`` is given and its length is dynamic; with ``through`` or
        ``keep`` also under a mask of padding.
    Numbers
        Approximate, training-free; exact where no token is merged, and where those that are were equal.
        Hidden keys count for nothing; a query that sees nothing gives 0.

    Parameters
    ----------
    r, ratio, protect, of, through, keep, margin
        See `rewriter.kernels.merge.form.Merge`.
    select
        Which sites; see `rewriter.selectors`.
    options
        See `rewriter.engine.Options`.

    Examples
    --------
    ``rewriter rewrite model.onnx -o out.onnx --apply merge:ratio=0.4 --budget 'cos>=0.98'``
    """

    form_type = Merge

    def __init__(
        self,
        r: int | None = None,
        ratio: float | None = None,
        protect: int = 1,
        of: str = "qkv",
        through: bool = False,
        keep: str | None = None,
        margin: float = 1.0,
        *,
        select: str = "all",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(Merge(r, ratio, protect, of, through, keep, margin), select, **options)
