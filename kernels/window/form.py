"""The form ``window``: each query sees its neighbours only, and a few first tokens."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from rewriter.algebra.sizes import ZERO, Size
from rewriter.forms import Canonical, Cost, Fidelity, Form
from rewriter.kernels.softmax.form import dense_cost
from rewriter.kernels.softmax.lowering import emit_dense
from rewriter.kernels.window.lowering import emit_grid, emit_sliding, grid_tile, tile_length
from rewriter.sites.site import Trait

if TYPE_CHECKING:
    import torch

    from rewriter.kernels.softmax.definition import Operands
    from rewriter.lower.emitter import Emitter, EmptyRow, Handle
    from rewriter.sites.site import AttentionSite, Band

__all__ = ["Window"]


@dataclass(frozen=True)
class Window(Form):
    """Sliding-window attention.

    Parameters
    ----------
    window
        How far a query sees, at least 1. At a causal site: that many keys up to and including its own.
        Elsewhere: every key at most ``window // 2`` away, on either side; with a grid, along both of its
        axes (``window=13`` is 13 × 13).
    sinks
        First tokens that stay connected to everything: every query sees them and they see every key, as
        far as the site's own mask allows. A class token and registers, or attention sinks.
    grid
        The tokens after the sinks are a row-major grid: ``HxW``, or ``auto`` for a square one.
    """

    name: ClassVar[str] = "window"
    summary: ClassVar[str] = (
        "each query sees its neighbours, along one axis or on a grid, and the first tokens"
    )
    traits: ClassVar[frozenset[Trait]] = frozenset({"softcap", "sink"})

    window: int
    sinks: int = 0
    grid: str | None = None

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window is {self.window}; expected at least 1")
        if self.sinks < 0:
            raise ValueError(f"sinks is {self.sinks}; expected 0 or more")
        if (
            self.grid is not None
            and self.grid != "auto"
            and not re.fullmatch(r"[1-9]\d*x[1-9]\d*", self.grid)
        ):
            raise ValueError(f"grid is {self.grid!r}; expected auto, or rows and columns as in 32x32")

    def fidelity(self, site: AttentionSite) -> Fidelity:
        """Return `Fidelity.EXACT` where the window is proved to hide nothing."""
        exact = self._hides_nothing(site.facts.band, site.queries, site.keys)
        return Fidelity.EXACT if exact else Fidelity.TRAINING_FREE

    def why_not(self, site: AttentionSite) -> str | None:
        """Return why the site has no sequence that a window can slide along, or None."""
        if self._hides_nothing(site.facts.band, site.queries, site.keys):
            return None
        if "k" in site.constant:
            return f"{site.id}: its keys do not depend on the inputs, so no query stands among them"
        return self._why_no_grid(site) if self.grid is not None else self._why_no_axis(site)

    def _why_no_axis(self, site: AttentionSite) -> str | None:
        band = site.facts.band
        if band is None:
            if site.queries == site.keys:
                return None
            return (
                f"{site.id} has {site.queries} queries and {site.keys} keys and no proved position of one"
                " among the other, as in cross-attention; a window needs both on one axis"
            )
        if not (band.offset.at_least(0) and (site.keys - site.queries - band.offset).at_least(0)):
            return f"{site.id}: query 0 stands at key {band.offset}, not proved to lie among {site.keys} keys"
        if self.sinks and band.offset != ZERO and not band.causal:
            return (
                f"{site.id}: sinks need a causal site or one that starts at key 0, not at key {band.offset}"
            )
        return None

    def _why_no_grid(self, site: AttentionSite) -> str | None:
        if site.facts.band is not None:
            return (
                f"{site.id} is causal or windowed along its sequence; a grid needs a site without such a mask"
            )
        tokens = site.keys.known()
        if tokens is None or site.queries != site.keys:
            return (
                f"{site.id} has {site.queries} queries and {site.keys} keys; a grid needs one number for both"
                " (fix the input size when tracing or exporting)"
            )
        if self._sides(tokens) is None:
            shape = "a square" if self.grid == "auto" else self.grid
            return (
                f"{site.id} has {tokens} tokens: {tokens - self.sinks} after {self.sinks} sinks, which is"
                f" not {shape}; set sinks to the number of tokens before the grid, and grid=HxW"
            )
        return None

    def adapt(self, a: Canonical) -> Canonical:
        """Apply the band that the bias implies: a window gives 0 where no visible key is left."""
        return replace(a, band=a.implied) if a.band is None else a

    def emit(self, e: Emitter, a: Canonical) -> Handle:
        """Emit tiles, or everything where the window hides nothing."""
        given, a = a, self.adapt(a)
        if self._hides_nothing(a.band, a.shape["I"], a.shape["J"]):
            # a band that is bounded on both sides saves work although nothing is approximated
            band = given.band
            if band is not None and band.left is not None and band.right is not None:
                return emit_sliding(e, given, band.left, band.right, 0, a.empty_row)
            return emit_dense(e, given)
        empty_row: EmptyRow = "never" if a.bias is None else "zero"
        if self.grid is not None:
            sides = self._sides(int(a.shape["J"]))
            assert sides is not None, "why_not has said so"
            return emit_grid(e, a, self.window // 2, sides, self.sinks, empty_row)
        back, ahead = self._reach(a.band)
        return emit_sliding(e, a, back, ahead, self.sinks, empty_row)

    def definition(self, x: Operands) -> torch.Tensor:
        """Compute it densely, with a mask."""
        from rewriter.kernels.window.definition import window_attention

        grid = self._sides(x.k.shape[2]) if self.grid is not None else None
        return window_attention(x, window=self.window, sinks=self.sinks, grid=grid)

    def cost(self, site: AttentionSite) -> Cost:
        """Return the cost of every score that the tiles compute, on keys outside of the window too."""
        return dense_cost(site, self._met(site) or site.keys)

    def _met(self, site: AttentionSite) -> Size | None:
        """Return how many keys a query meets on average, or None where it meets all."""
        band, queries, keys = site.facts.band, site.queries.known(), site.keys.known()
        if self._hides_nothing(band, site.queries, site.keys):
            if band is None or band.left is None or band.right is None:
                return None
            reach, sinks = band.left + band.right, 0
        elif self.grid is not None:
            return self._met_on_grid(keys or 0)
        else:
            reach, sinks = sum(self._reach(band)), self.sinks
        length = tile_length(reach, sinks, queries, keys)
        return None if length is None else Size.of(length + reach + sinks)

    def _met_on_grid(self, tokens: int) -> Size | None:
        sides = self._sides(tokens)
        if sides is None:
            return None
        tile = grid_tile(sides, self.window // 2, self.sinks)
        axes = list(zip(sides, tile, strict=True))
        padded = math.prod(-(-size // length) * length for size, length in axes)
        reached = math.prod(min(size, length + self.window // 2 * 2) for size, length in axes)
        computed = padded * (reached + self.sinks) + self.sinks * tokens
        return Size.of(-(-computed // tokens))

    @property
    def telling_length(self) -> int:
        """Return a length of some tiles beyond the window."""
        return (self.window + self.sinks + 300) | 1

    def _reach(self, band: Band | None) -> tuple[int, int]:
        causal = band is not None and band.causal
        return (self.window - 1, 0) if causal else (self.window // 2, self.window // 2)

    def _hides_nothing(self, band: Band | None, queries: Size, keys: Size) -> bool:
        """Whether every key that the site lets a query see is proved to be in the window."""
        if Size.of(self.sinks).at_least(keys):
            return True
        if self.grid is not None:
            sides = self._sides(keys.known() or 0)
            return (
                band is None and queries == keys and sides is not None and self.window // 2 >= max(sides) - 1
            )
        back, ahead = self._reach(band)
        offset = band.offset if band is not None else ZERO
        far_back, far_ahead = offset + queries - 1, keys - 1 - offset
        if band is None and queries != keys:
            return False
        behind = band is not None and band.left is not None and back >= band.left
        before = band is not None and band.right is not None and ahead >= band.right
        return (behind or Size.of(back).at_least(far_back)) and (before or Size.of(ahead).at_least(far_ahead))

    def _sides(self, tokens: int) -> tuple[int, int] | None:
        """Return rows and columns of the grid, or None if it does not fit the tokens."""
        body = tokens - self.sinks
        if body < 1:
            return None
        if self.grid == "auto":
            side = math.isqrt(body)
            return (side, side) if side * side == body else None
        rows, columns = map(int, (self.grid or "").split("x"))
        return (rows, columns) if rows * columns == body else None
