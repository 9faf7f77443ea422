"""The pass ``agent``."""

from __future__ import annotations

from typing import Unpack

from rewriter.engine import Options, Pass
from rewriter.kernels.agent.form import Agent

__all__ = ["AgentAttention"]


class AgentAttention(Pass):
    """Lets a few agents gather values from all keys, and every query ask the agents.

    Before: every query meets every key. After: the agents, some of the queries, meet every key, and every
    query meets the agents, so that work grows with the length and no longer with its square.

    Applies when
        every query sees the same keys: self- and cross-attention, with padding or without, with a fixed or a
        dynamic length.
    Refuses when
        the site is of another kind, has another normaliser, a soft cap, sinks or mixed heads, changes scores
        or weights, is causal or windowed, has a bias that differs from query to query, has fewer tokens than
        there are agents, or does not fit the grid or the weights.
    Numbers
        Approximate, training-free; exact where all queries are protected, and for one query or one key. As
        many agents as tokens is not exact. A query whose keys are all hidden gives 0.

    Parameters
    ----------
    agents, protect, grid, pool, sharpness, shortcut, weights
        See `rewriter.kernels.agent.form.Agent`.
    select
        Which sites; see `rewriter.selectors`.
    options
        See `rewriter.engine.Options`.

    Examples
    --------
    ``rewriter rewrite model.onnx -o out.onnx --apply agent:agents=49,protect=1,grid=auto --no-budget``
    """

    form_type = Agent

    def __init__(
        self,
        agents: int,
        protect: int = 0,
        grid: str | None = None,
        pool: str = "stride",
        sharpness: float = 1.0,
        shortcut: float = 0.0,
        weights: str | None = None,
        *,
        select: str = "all",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(Agent(agents, protect, grid, pool, sharpness, shortcut, weights), select, **options)
