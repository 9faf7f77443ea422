"""Agent attention by its definition: dense, plain, in float32 or wider."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from rewriter.kernels.agent.landmarks import FAINT, MOVES, NEARNESS, PRIOR, bins, middles
from rewriter.kernels.softmax.definition import Operands, softmax_attention, zero_where_blind

__all__ = [
    "agent_attention",
    "attend_or_zero",
    "by_keys",
    "clustered",
    "convolved",
    "landmark_shares",
    "landmarks",
    "shown_tokens",
    "with_exact_rows",
]


def landmark_shares(count: int, tokens: int, pool: str) -> torch.Tensor:
    """Return ``[count, tokens]``: the share of every token of a sequence in every landmark; rows sum to 1."""
    shares = torch.zeros(count, tokens, dtype=torch.float64)
    if pool == "stride":
        shares[torch.arange(count), middles(count, tokens)] = 1
        return shares
    for i, (start, end) in enumerate(bins(count, tokens)):
        shares[i, start:end] = 1 / (end - start)
    return shares


def landmarks(
    x: torch.Tensor,
    count: int,
    protect: int,
    grid: tuple[int, int] | None,
    pool: str,
    shown: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return landmarks of tokens, ``[B, H, count, D]``.

    Parameters
    ----------
    x
        ``[B, H, N, D]``.
    count, protect, pool
        See `rewriter.kernels.agent.landmarks.Landmarks`.
    grid
        Rows and columns of the tokens after the protected ones, or None for a sequence.
    shown
        Booleans ``[B, H, N]``: tokens that there are no landmarks for are left out of the sequence. Where
        none is left, landmarks are 0.
    """
    result = x.new_zeros(*x.shape[:2], count, x.shape[3])
    if grid is not None:
        side = math.isqrt(count)
        rows, columns = (landmark_shares(side, n, pool).to(x) for n in grid)
        return torch.einsum("nt,bhtd->bhnd", torch.kron(rows, columns), x[:, :, protect:])
    for b, one in enumerate(x):
        for h, tokens in enumerate(one):
            body = tokens[protect:] if shown is None else tokens[protect:][shown[b, h, protect:]]
            if len(body):
                result[b, h] = landmark_shares(count, len(body), pool).to(x) @ body
    return result


def clustered(q: torch.Tensor, agents: torch.Tensor, sharpness: float, kept: torch.Tensor) -> torch.Tensor:
    """Return agents that have moved to the middle of the queries that are nearest to them, ``[B, H, n, D]``.

    Each of ``MOVES`` moves is one of expectation and maximisation for a mixture of equal, round normal
    distributions around the agents, which is k-means where ``sharpness`` is large: a query belongs to the
    agents by ``softmax(sharpness · (q·a - |a|² / 2))``, and an agent becomes the mean of the queries by how
    much they belong to it. Its own place counts as ``PRIOR`` queries.

    Parameters
    ----------
    q
        Queries ``[B, H, N, D]``.
    agents
        Where they are first, ``[B, H, n, D]``.
    sharpness
        As above.
    kept
        Booleans ``[B, H, N]``: other queries take no part.
    """
    for _ in range(MOVES):
        distance = agents.square().sum(-1)[:, :, None] / 2
        near = (sharpness * (q @ agents.mT - distance)).softmax(-1) * kept[..., None]
        agents = (near.mT @ q + PRIOR * agents) / (near.sum(2)[..., None] + PRIOR)
    return agents


def shown_tokens(x: Operands) -> torch.Tensor | None:
    """Return which tokens the bias by keys does not hide, ``[B, H, J]``; None where it hides no queries.

    Where there are as many queries as keys, they are taken for the same tokens.
    """
    if x.bias is None or x.q.shape[2] != x.k.shape[2]:
        return None
    bias = x.bias.expand(*x.q.shape[:2], 1, x.k.shape[2])[:, :, 0]
    return bias >= bias.amax(-1, keepdim=True) - FAINT


def by_keys(x: Operands) -> Operands:
    """Return the operands with one row of a bias whose rows are all alike."""
    return x if x.bias is None else replace(x, bias=x.bias[:, :, :1])


def attend_or_zero(x: Operands) -> torch.Tensor:
    """Return softmax attention, ``[B, H, I, E]`` in float32 or wider; a query that sees no key gives 0."""
    every = torch.ones(x.q.shape[2], x.k.shape[2], dtype=torch.bool)
    return zero_where_blind(x, every, softmax_attention(x))


def with_exact_rows(x: Operands, result: torch.Tensor, protect: int) -> torch.Tensor:
    """Return the result with the rows of the first tokens computed exactly."""
    first = attend_or_zero(replace(x, q=x.q[:, :, :protect]))
    return torch.cat([first, result[:, :, protect:]], dim=2)


def convolved(
    v: torch.Tensor, kernel: torch.Tensor, protect: int, grid: tuple[int, int] | None
) -> torch.Tensor:
    """Return the depth-wise convolution of the tokens after the first ones, ``[B, H, J, E]``; 0 for those.

    Parameters
    ----------
    v
        ``[B, G, J, E]``.
    kernel
        ``[H, E, rows, columns]``.
    protect
        How many first tokens there are.
    grid
        Rows and columns of the others, or None for a sequence, which is one row.
    """
    heads, width, *size = kernel.shape
    v = v.repeat_interleave(heads // v.shape[1], dim=1)
    batch, count = v.shape[0], v.shape[2] - protect
    rows, columns = (1, count) if grid is None else grid
    image = v[:, :, protect:].mT.reshape(batch, heads * width, rows, columns)
    padding = [n // 2 for n in size]
    found = torch.nn.functional.conv2d(
        image, kernel.reshape(heads * width, 1, *size), padding=padding, groups=heads * width
    )
    body = found.reshape(batch, heads, width, count).mT
    return torch.cat([body.new_zeros(batch, heads, protect, width), body], dim=2)


def agent_attention(
    x: Operands,
    *,
    agents: int,
    protect: int = 0,
    grid: tuple[int, int] | None = None,
    pool: str = "stride",
    sharpness: float = 1.0,
    shortcut: float = 0.0,
    of_keys: torch.Tensor | None = None,
    of_queries: torch.Tensor | None = None,
    convolution: torch.Tensor | None = None,
    fitted: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return agent attention, ``[B, H, I, E]``; an agent that sees no key has the value 0.

    That is ``softmax(sharpness · scale · q aᵀ + of_queries) (softmax(scale · a kᵀ + bias + of_keys) v) +
    shortcut · v + convolution(v)``, where the agents ``a`` are `landmarks` of the queries or ``fitted``
    ``[H, n, D]``, `clustered` if the pool is ``cluster``, and softmax attention for the protected queries.

    Operands are as in `rewriter.kernels.softmax.definition.attend`, without a band; the bias depends on keys
    only. The fitted parts are as in `rewriter.kernels.agent.fitted.Fitted`, None for zero.

    Source: Han et al., Agent Attention: On the Integration of Softmax and Linear Attention, 2024,
    equations 3 and 4, with their agent biases and depth-wise convolution.
    """
    x = by_keys(x)
    q = x.q.to(torch.promote_types(x.q.dtype, torch.float32))
    shown = shown_tokens(x)
    if fitted is None:
        few = landmarks(q, agents, protect, grid, "stride" if pool == "cluster" else pool, shown)
    else:
        few = fitted.to(q).expand(len(q), *fitted.shape)
    if pool == "cluster":
        kept = torch.ones(q.shape[:3], dtype=torch.bool) if shown is None else shown.clone()
        kept[..., :protect] = False
        few = clustered(q, few, NEARNESS * abs(x.scale), kept)
    bias = x.bias
    if of_keys is not None:
        bias = of_keys[None].to(q) if bias is None else bias + of_keys.to(bias)
    gathered = attend_or_zero(replace(x, q=few, bias=bias))
    second = None if of_queries is None else of_queries[None].to(q)
    result = softmax_attention(Operands(q, few, gathered, second, x.scale * sharpness))
    if convolution is not None:
        result = result + convolved(x.v.to(q.dtype), convolution.to(q), protect, grid)
    if shortcut:
        result = result + shortcut * x.v.to(q.dtype).repeat_interleave(q.shape[1] // x.v.shape[1], dim=1)
    return with_exact_rows(x, result, protect)
