"""The form ``agent``: two softmaxes in a row, through a few agents."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from rewriter.algebra.sizes import ONE, Size
from rewriter.forms import Canonical, Cost, Fidelity, Form
from rewriter.kernels.agent.fitted import Fitted, read_fitted, why_not_fitted
from rewriter.kernels.agent.landmarks import MOVES, POOLS, Landmarks, shown_plane
from rewriter.kernels.agent.lowering import emit_agents
from rewriter.kernels.softmax.fitted import check_path
from rewriter.kernels.softmax.form import dense_cost
from rewriter.kernels.softmax.lowering import emit_dense
from rewriter.kernels.softmax.time import attention_time, copy_time, product_time, weights_time

if TYPE_CHECKING:
    import torch

    from rewriter.kernels.softmax.definition import Operands
    from rewriter.lower.emitter import Emitter, Handle
    from rewriter.sites.site import AttentionSite

__all__ = ["Agent", "two_stages_cost"]


@dataclass(frozen=True)
class Agent(Form):
    """Agent attention: a few agents gather values from all keys, and every query asks the agents.

    Parameters
    ----------
    agents
        How many, at least 1; a square number on a grid (49 is 7 × 7).
    protect
        First tokens that keep exact attention and are no agents: a class token and registers.
    grid
        The other tokens are a row-major grid: ``HxW``, or ``auto`` for the one that the graph shows, behind
        the tokens before it; only where it shows none, for a square one.
    pool
        What an agent is: ``stride``, the query in the middle of its part of the tokens; ``mean``, the mean of
        the queries of that part; ``cluster``, the mean of the queries that are nearest to those in the
        middles, and then to these means.
    sharpness
        Factor on the scores of queries and agents.
    shortcut
        Share of a token's own value that is added to its result.
    weights
        A ``.npz`` file with parts that were fitted for this site. ``agents``, ``[heads, agents, width]``, are
        in place of queries. Others are zero if they are missing: ``keys``, ``[heads, agents, keys]``, and
        ``queries``, ``[heads, queries, agents]``, are added to the scores, and ``convolution``, ``[heads,
        features, rows, columns]``, is a depth-wise convolution of the values that is added to the result. No
        comma in its path.
    """

    name: ClassVar[str] = "agent"
    summary: ClassVar[str] = "a few agents gather values from all keys, and every query asks the agents"
    rows_apart: ClassVar[bool] = False

    agents: int
    protect: int = 0
    grid: str | None = None
    pool: str = "stride"
    sharpness: float = 1.0
    shortcut: float = 0.0
    weights: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool not in (*POOLS, "cluster"):
            raise ValueError(f"pool is {self.pool!r}; expected {', '.join(POOLS)} or cluster")
        _ = self._landmarks
        if not 0 < self.sharpness < math.inf:
            raise ValueError(f"sharpness is {self.sharpness}; expected more than 0")
        if not math.isfinite(self.shortcut):
            raise ValueError(f"shortcut is {self.shortcut}; expected a finite number")
        check_path(self.weights)

    @property
    def _landmarks(self) -> Landmarks:
        pool = "stride" if self.pool == "cluster" else self.pool
        return Landmarks(self.agents, self.protect, self.grid, pool, "agents")

    def at(self, site: AttentionSite) -> Form:
        """Return it with the grid that the graph shows; the tokens before that are protected."""
        shown = shown_plane(site) if self.grid == "auto" else None
        return self if shown is None else replace(self, grid=shown[0], protect=max(self.protect, shown[1]))

    def fidelity(self, site: AttentionSite) -> Fidelity:
        """Return `Fidelity.EXACT` where all queries are protected, or there is one query or one key."""
        if self._exact(site.queries, site.keys):
            return Fidelity.EXACT
        return Fidelity.TRAINING_FREE if self.weights is None else Fidelity.DISTILLED

    def why_not(self, site: AttentionSite) -> str | None:
        """Return why agents cannot stand for the queries, or None."""
        if self._exact(site.queries, site.keys):
            return None
        if self.shortcut and site.queries != site.keys:
            return (
                f"{site.id} has {site.queries} queries and {site.keys} keys; a shortcut needs one number for"
                " both"
            )
        reason = self._landmarks.why_not(site)
        if reason is not None or self.weights is None:
            return reason
        return why_not_fitted(self.weights, site, self.agents)

    def emit(self, e: Emitter, a: Canonical) -> Handle:
        """Emit two calls of attention, each with few queries or few keys."""
        if self._exact(a.shape["I"], a.shape["J"]):
            return emit_dense(e, a)
        fitted = None if self.weights is None else read_fitted(self.weights)
        clustered = self.pool == "cluster"
        return emit_agents(e, a, self._landmarks, self.sharpness, self.shortcut, fitted, clustered)

    def definition(self, x: Operands) -> torch.Tensor:
        """Compute it densely."""
        import torch

        from rewriter.kernels.agent.definition import agent_attention

        fitted = Fitted() if self.weights is None else read_fitted(self.weights)
        agents, of_keys, of_queries, convolution = (
            None if part is None else torch.from_numpy(part)
            for part in (fitted.agents, fitted.keys, fitted.queries, fitted.convolution)
        )
        return agent_attention(
            x,
            agents=self.agents,
            protect=self.protect,
            grid=self._landmarks.sides(x.q.shape[2]),
            pool=self.pool,
            sharpness=self.sharpness,
            shortcut=self.shortcut,
            of_keys=of_keys,
            of_queries=of_queries,
            convolution=convolution,
            fitted=agents,
        )

    def cost(self, site: AttentionSite) -> Cost:
        """Return the cost of both products, and of the exact rows."""
        if self._exact(site.queries, site.keys):
            return dense_cost(site, site.keys)
        cost = two_stages_cost(site, self.agents, self.protect)
        if self.pool != "cluster":
            return cost
        count, width = site.batch * site.heads, site.qk_dim
        scores = MOVES * count * site.queries * self.agents
        time = product_time(count, site.queries, width, self.agents)
        time += product_time(count, self.agents, site.queries, width)
        time = MOVES * (time + copy_time(0, calls=10)) + weights_time(scores, passes=3)
        known = None if cost.time is None else cost.time + time
        return replace(cost, flops=cost.flops + 4 * scores * width, time=known)

    @property
    def telling_length(self) -> int:
        """Return a length at which parts have several tokens, and not all the same number."""
        return 3 * self.agents + self.protect + 1

    def _exact(self, queries: Size, keys: Size) -> bool:
        alone = not self.shortcut and self.weights is None and ONE in (queries, keys)
        return alone or Size.of(self.protect).at_least(queries)


def two_stages_cost(site: AttentionSite, landmarks: int, protect: int) -> Cost:
    """Return what a site costs whose landmarks meet all keys, and whose queries meet the landmarks."""
    width, count = site.qk_dim + site.v_dim, site.batch * site.heads
    scores = landmarks * (site.queries + site.keys) + protect * site.keys
    first = attention_time(count, landmarks + protect, site.keys, width)
    second = attention_time(count, site.queries, landmarks, width)
    # landmarks are gathered, and the result is copied to where the exact rows are
    copied = landmarks * site.qk_dim + (site.queries * site.v_dim if protect else 0)
    time = first + second + copy_time(count * copied, calls=3 if protect else 1)
    return Cost(2 * count * scores * width, dense_cost(site, site.keys).bytes, 2, time)
