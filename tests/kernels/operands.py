"""Operands of attention for tests of forms, and attention by counting on fingers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from rewriter.algebra.sizes import Size
from rewriter.forms import Canonical
from rewriter.kernels.softmax.definition import Operands
from rewriter.lower.torch_emitter import TorchEmitter
from rewriter.sites.site import AttentionSite, Band, Facts

__all__ = ["CAUSAL", "by_hand", "canonical", "emitter_of", "operands", "site"]

CAUSAL = Band(Size.of(0), None, 0)


def canonical(
    queries: int,
    keys: int | None = None,
    *,
    batch: int = 2,
    heads: int = 4,
    groups: int = 2,
    bias: str | None = None,
    band: Band | None = None,
    dynamic: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    softcap: float | None = None,
    sink: str | None = None,
) -> Canonical:
    """Return random operands.

    ``bias`` is ``"keys"`` (some hidden), ``"full"`` or ``"one batch"``; ``sink`` is ``"heads"`` (one logit
    each), ``"batch"`` (two) or ``"full"``.
    """
    keys = queries if keys is None else keys
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, heads, queries, 8, generator=g).to(dtype)
    k = torch.randn(batch, groups, keys, 8, generator=g).to(dtype)
    v = torch.randn(batch, groups, keys, 6, generator=g).to(dtype)
    added = None
    if bias == "keys":
        added = torch.randn(batch, 1, 1, keys, generator=g).to(dtype)
        added[0, ..., : keys // 3] = -math.inf
    elif bias == "full":
        added = torch.randn(batch, heads, queries, keys, generator=g).to(dtype)
    elif bias == "one batch":
        added = torch.randn(1, 1, queries, keys, generator=g).to(dtype)
    logits = None
    if sink is not None:
        lead = {"heads": (1, heads, 1, 1), "batch": (batch, 1, 1, 2), "full": (batch, heads, queries, 1)}
        logits = torch.randn(lead[sink], generator=g).to(dtype)
    sizes = {"B": batch, "H": heads, "G": groups, "I": queries, "J": keys, "D": 8, "E": 6}
    shape = {letter: Size.of(n) for letter, n in sizes.items()}
    if dynamic:
        shape["I"] = Size.symbol("n")
        shape["J"] = Size.symbol("n") if queries == keys else Size.symbol("n") + (keys - queries)
    return Canonical(q, k, v, added, band, 0.3, "never", shape, softcap=softcap, sink=logits)


def operands(a: Canonical) -> Operands:
    """Return what a definition takes."""
    return Operands(a.q, a.k, a.v, a.bias, a.scale, a.band, a.softcap, a.sink, a.normalizer, a.shift)


def emitter_of(a: Canonical, kind: Callable[..., TorchEmitter] = TorchEmitter) -> TorchEmitter:
    """Return an emitter that knows the operands by the sizes they are said to have."""
    at = a.shape
    inputs: list[tuple[Any, tuple[Size, ...]]] = [
        (a.q, (at["B"], at["H"], at["I"], at["D"])),
        (a.k, (at["B"], at["G"], at["J"], at["D"])),
        (a.v, (at["B"], at["G"], at["J"], at["E"])),
    ]
    for x, last in ((a.bias, at["J"]), (a.sink, None)):
        if x is not None:
            wanted = (at["B"], at["H"], at["I"], last or Size.of(x.shape[3]))
            shape = tuple(Size.of(1) if n == 1 else w for n, w in zip(x.shape, wanted, strict=True))
            inputs.append((x, shape))
    return kind(inputs)


def by_hand(
    a: Canonical, sees: Callable[[int, int], bool], weigh: Callable[[float], float] = float
) -> torch.Tensor:
    """Return attention, one score after the other; ``sees(i, j)``; a query that sees nothing gives NaN.

    ``weigh`` changes each weight of the softmax.
    """
    B, H, queries, D = a.q.shape
    share = H // a.k.shape[1]
    result = torch.full((B, H, queries, a.v.shape[3]), math.nan, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            for i in range(queries):
                seen = [j for j in range(a.k.shape[2]) if sees(i, j)]
                scores = []
                for j in seen:
                    score = a.scale * sum(
                        float(a.q[b, h, i, d]) * float(a.k[b, h // share, j, d]) for d in range(D)
                    )
                    if a.softcap is not None:
                        score = a.softcap * math.tanh(score / a.softcap)
                    if a.bias is not None:
                        added = a.bias.expand(B, H, queries, a.k.shape[2])
                        score += float(added[b, h, i, j])
                    scores.append(score)
                sinks: list[float] = []
                if a.sink is not None:
                    sinks = a.sink.expand(B, H, queries, a.sink.shape[3])[b, h, i].tolist()
                top = max([*scores, *sinks], default=-math.inf)
                if top > -math.inf:
                    total = sum(math.exp(s - top) for s in [*scores, *sinks])
                    weights = [weigh(math.exp(s - top) / total) for s in scores]
                    values = [a.v[b, h // share, j].double() * w for j, w in zip(seen, weights, strict=True)]
                    result[b, h, i] = sum(values, torch.zeros(a.v.shape[3]))
    return result


def site(**changes: Any) -> AttentionSite:
    """Return a site of 16 tokens and 4 heads without a mask, with changes."""
    plain: dict[str, Any] = {
        "id": "attention.0",
        "kind": "attention",
        "anchor": "matmul_1",
        "output": "out",
        **{name: Size.of(n) for name, n in zip(("batch", "heads", "kv_heads"), (1, 4, 4), strict=True)},
        **{name: Size.of(16) for name in ("queries", "keys", "qk_dim", "v_dim")},
        "scale": 0.25,
        "normalizer": "softmax",
        "empty_row": "never",
        "facts": Facts(dense=True),
        "dtype": "float32",
        "inputs": ("q", "k", "v"),
        "region": (),
        "consumers": (),
        "signature": "s",
        "formula": None,
    }
    for name in ("batch", "queries", "keys"):
        if name in changes:
            changes[name] = Size.of(changes[name])
    return AttentionSite(**{**plain, **changes})
