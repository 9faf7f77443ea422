"""The form ``nystrom``: the matrix of weights by its rows and columns at a few landmarks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from rewriter.algebra.sizes import ONE, Size
from rewriter.forms import Canonical, Cost, Fidelity, Form
from rewriter.kernels.agent.form import two_stages_cost
from rewriter.kernels.agent.landmarks import Landmarks, shown_plane
from rewriter.kernels.nystrom.lowering import emit_nystrom
from rewriter.kernels.softmax.form import dense_cost
from rewriter.kernels.softmax.lowering import emit_dense
from rewriter.kernels.softmax.time import copy_time, product_time

if TYPE_CHECKING:
    import torch

    from rewriter.kernels.softmax.definition import Operands
    from rewriter.lower.emitter import Emitter, Handle
    from rewriter.sites.site import AttentionSite

__all__ = ["Nystrom"]

ITERATIONS = 100
"""Most of them: each is written out, as four products."""


@dataclass(frozen=True)
class Nystrom(Form):
    """Nyström attention: the matrix of weights by its rows and columns at a few landmarks.

    Parameters
    ----------
    landmarks
        How many, at least 1; a square number on a grid (100 is 10 × 10).
    protect
        First tokens that keep exact attention and are no landmarks: a class token and registers.
    grid
        The other tokens are a row-major grid: ``HxW``, or ``auto`` for the one that the graph shows, behind
        the tokens before it; only where it shows none, for a square one.
    pool
        What a landmark is: ``stride``, the token in the middle of its part of the tokens, or ``mean``, the
        mean of that part.
    iterations
        Of the pseudo-inverse, 1 to 100. More than 10 amplify rounding.
    """

    name: ClassVar[str] = "nystrom"
    summary: ClassVar[str] = "the matrix of weights by its rows and columns at a few landmarks"
    rows_apart: ClassVar[bool] = False

    landmarks: int
    protect: int = 0
    grid: str | None = None
    pool: str = "stride"
    iterations: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self._landmarks
        if not 1 <= self.iterations <= ITERATIONS:
            raise ValueError(f"iterations is {self.iterations}; expected 1 to {ITERATIONS}")

    @property
    def _landmarks(self) -> Landmarks:
        return Landmarks(self.landmarks, self.protect, self.grid, self.pool, "landmarks")

    def at(self, site: AttentionSite) -> Form:
        """Return it with the grid that the graph shows; the tokens before that are protected."""
        shown = shown_plane(site) if self.grid == "auto" else None
        return self if shown is None else replace(self, grid=shown[0], protect=max(self.protect, shown[1]))

    def fidelity(self, site: AttentionSite) -> Fidelity:
        """Return `Fidelity.EXACT` where every token is a landmark, or every query protected or alone."""
        return Fidelity.EXACT if self._exact(site.queries, site.keys) else Fidelity.TRAINING_FREE

    def why_not(self, site: AttentionSite) -> str | None:
        """Return why landmarks cannot stand for queries and keys, or None."""
        if self._exact(site.queries, site.keys):
            return None
        if site.queries != site.keys:
            return (
                f"{site.id} has {site.queries} queries and {site.keys} keys; landmarks are the same tokens"
                " among both"
            )
        return self._landmarks.why_not(site)

    def emit(self, e: Emitter, a: Canonical) -> Handle:
        """Emit products with landmarks, or attention itself where nothing is approximated."""
        if self._exact(a.shape["I"], a.shape["J"]):
            return emit_dense(e, a)
        return emit_nystrom(e, a, self._landmarks, self.iterations)

    def definition(self, x: Operands) -> torch.Tensor:
        """Compute it densely."""
        from rewriter.kernels.nystrom.definition import nystrom_attention

        return nystrom_attention(
            x,
            count=self.landmarks,
            protect=self.protect,
            grid=self._landmarks.sides(x.q.shape[2]),
            pool=self.pool,
            iterations=self.iterations,
        )

    def cost(self, site: AttentionSite) -> Cost:
        """Return the cost of the products with landmarks, of the pseudo-inverse and of the exact rows."""
        if self._exact(site.queries, site.keys):
            return dense_cost(site, site.keys)
        count, matrices = self.landmarks, site.batch * site.heads
        stages = two_stages_cost(site, count, self.protect)
        inverse = 8 * self.iterations * count**3 + 2 * count**2 * (site.qk_dim + site.v_dim)
        once = product_time(matrices, count, count, count)
        time = 4 * self.iterations * once + copy_time(0, calls=4 * self.iterations + 10)
        time = time if stages.time is None else stages.time + time
        return replace(stages, flops=stages.flops + matrices * inverse, time=time)

    @property
    def telling_length(self) -> int:
        """Return a length at which parts have several tokens, and not all the same number."""
        return 3 * self.landmarks + self.protect + 1

    def _exact(self, queries: Size, keys: Size) -> bool:
        if ONE in (queries, keys) or Size.of(self.protect).at_least(queries):
            return True
        # what is protected is no landmark, so that the other queries would not see it
        return queries == keys and not self.protect and Size.of(self.landmarks).at_least(queries)
