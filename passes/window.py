"""The pass ``window``."""

from __future__ import annotations

from typing import Unpack

from rewriter.engine import Options, Pass
from rewriter.kernels.window.form import Window

__all__ = ["WindowAttention"]


class WindowAttention(Pass):
    """Lets every query see its neighbours only, and the first tokens.

    Before: every query meets every key. After: tiles of queries meet the keys around them, so that work grows
    with the length and no longer with its square.

    Applies when
        queries and keys lie on one axis: self-attention, causal or not, or on a grid of known size. Borders
        that move need a known length.
    Refuses when
        the site is of another kind, has another normaliser, mixes its heads, changes scores or weights, has
        constant keys, is cross-attention, does not fit the grid or has another one by the graph, or is masked
        along its sequence although a grid is asked for; with ``window=auto``, if its mask is not proved to be
        a window.
    Numbers
        Approximate, training-free; exact where the window is proved to hold every key that the site sees: all
        of them, or those of a mask that is proved to be a band, blocks or a neighbourhood on a grid. A
        query whose window holds no visible key (all of it is padding) gives 0.

    Parameters
    ----------
    window, sinks, grid, stride, dilation, offset, borders
        See `rewriter.kernels.window.form.Window`.
    select
        Which sites; see `rewriter.selectors`.
    options
        See `rewriter.engine.Options`.

    Examples
    --------
    ``rewriter rewrite model.onnx -o out.onnx --apply window:window=512,sinks=4@best=0.5 --data texts.npz``
    """

    form_type = Window

    def __init__(
        self,
        window: int | str,
        sinks: int | str = "auto",
        grid: str | None = None,
        stride: int | str | None = None,
        dilation: int | str | None = None,
        offset: int | str | None = None,
        borders: str | None = None,
        *,
        select: str = "all",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(Window(window, sinks, grid, stride, dilation, offset, borders), select, **options)
