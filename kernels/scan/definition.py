"""Causal sums ``o_i = sum over j <= i of (q_i · fade_ij k_j) v_j``: at once, in chunks, and step by step.

``fade_ij`` is the exponential of the sum of the log-decays of the steps after ``j`` up to ``i``; it is 1
without decay. With a number per head it is that of Lightning Attention (Qin et al., *Lightning Attention-2*),
with one per step and feature that of Yang et al., *Gated Linear Attention Transformers*: the recurrence
``S_t = diag(exp(log_decay_t)) S_{t-1} + k_t v_tᵀ``, ``o_t = S_tᵀ q_t``.

Shapes of all: q ``[B, H, I, F]``, k ``[B, G, J, F]``, v ``[B, G, J, E]``; query head ``h`` reads key head
``h // (H // G)``. ``log_decay`` is at most 0 and broadcasts to ``[B, G, J, F]``; its last axis is ``F`` or 1.
Query ``i`` stands at key ``i + offset``. Results are float32 or wider.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["by_settings", "scan", "scan_in_chunks", "scan_step"]


def scan(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None = None, offset: int = 0) -> Tensor:
    """Return ``[B, H, I, E]`` from the weights of all pairs of a query and a key."""
    q, k, v, log_decay = _for_every_head(q, k, v, log_decay)
    at, keys = torch.arange(q.shape[2], device=q.device) + offset, torch.arange(k.shape[2], device=q.device)
    seen = keys <= at[:, None]
    if log_decay is None:
        weights = torch.einsum("bhif,bhjf->bhij", q, k) * seen
    else:
        sums = log_decay.cumsum(2)
        faded = sums[:, :, at, None] - sums[:, :, None]
        faded = faded.masked_fill(~seen[..., None], -torch.inf).exp()
        weights = torch.einsum("bhif,bhijf,bhjf->bhij", q, faded.expand(*faded.shape[:4], q.shape[3]), k)
    return torch.einsum("bhij,bhje->bhie", weights, v)


def scan_in_chunks(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None = None, offset: int = 0, *, chunk: int = 64
) -> Tensor:
    """Return the same: weights within each chunk of keys, and the state of all chunks before it."""
    q, k, v, log_decay = _for_every_head(q, k, v, log_decay)
    state = q.new_zeros(*k.shape[:2], k.shape[3], v.shape[3])
    found = []
    for start in range(0, min(k.shape[2], offset + q.shape[2]), chunk):
        part = slice(start, start + chunk)
        fade = None if log_decay is None else log_decay[:, :, part]
        ks, vs, first = k[:, :, part], v[:, :, part], max(start, offset)
        qs = q[:, :, first - offset : max(start + chunk - offset, 0)]
        sums = torch.zeros_like(ks[..., :1]) if fade is None else fade.cumsum(2)
        if qs.shape[2]:
            own = scan(qs, ks, vs, fade, first - start)
            reach = sums[:, :, first - start : first - start + qs.shape[2]].exp()
            found.append(own + (qs * reach) @ state)
        total = sums[:, :, -1:]
        state = total.exp().mT * state + (ks * (total - sums).exp()).mT @ vs
    return torch.cat(found, 2)


def scan_step(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return what one more token gives, ``[B, H, 1, E]``, and the state after it.

    Parameters
    ----------
    state
        ``[B, G, F, E]``; zeros before the first token.
    q, k, v, log_decay
        Of one token.
    """
    fade = 1.0 if log_decay is None else log_decay.to(state).exp().mT
    state = fade * state + k.to(state).mT @ v.to(state)
    share = q.shape[1] // k.shape[1]
    return q.to(state) @ state.repeat_interleave(share, dim=1), state


def _for_every_head(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    wide = torch.promote_types(q.dtype, torch.float32)
    share = q.shape[1] // k.shape[1]
    if log_decay is not None:
        log_decay = log_decay.to(wide).expand(*k.shape[:3], log_decay.shape[3])
        log_decay = log_decay.repeat_interleave(share, dim=1)
    k, v = (x.to(wide).repeat_interleave(share, dim=1) for x in (k, v))
    return q.to(wide), k, v, log_decay


by_settings = scan
"""By the settings of ``torch.ops.rewriter.scan``."""
