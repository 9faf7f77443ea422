"""Gradients of faded causal sums: scans themselves, of which those of keys and values run backwards.

With ``g`` the gradient of ``o``, ``dq_i = sum over j <= i of fade_ij (g_i · v_j) k_j``, and ``dk_j`` and
``dv_j`` are sums over ``i >= j``. A log-decay has part in every pair that it lies between, so its gradient is
the sum over the steps from it on of ``q dq - k dk``; Yang et al., *Gated Linear Attention Transformers*.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

__all__ = ["Gradients", "Scan", "faded_values", "scan_gradient"]

Gradients = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""Of q, k, v and the log-decay; None where there is none."""

Scan = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]
"""Of q, k, v and log-decay of one number of heads and tokens."""


def scan_gradient(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    offset: int,
    scan: Scan,
    values: Scan | None = None,
) -> Gradients:
    """Return the gradients of `rewriter.kernels.scan.definition.scan`, each like its operand.

    Parameters
    ----------
    grad
        Of the result.
    scan
        Computes the sums.
    values
        The same where not the features of the keys fade, but those of the values; by ``scan`` if None.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    share, keys = q.shape[1] // k.shape[1], k.shape[2]
    behind = keys - offset - q.shape[2]
    qs, gs = (torch.nn.functional.pad(x.to(wide), (0, 0, offset, behind)) for x in (q, grad))
    ks, vs = (x.to(wide).repeat_interleave(share, dim=1) for x in (k, v))
    fade = later = None
    if log_decay is not None:
        fade = log_decay.to(wide).expand(*k.shape[:3], log_decay.shape[3]).repeat_interleave(share, dim=1)
        # read from the end, a step fades what the step after it faded
        later = torch.nn.functional.pad(fade[:, :, 1:].flip(2), (0, 0, 1, 0))
    per_feature = fade is not None and fade.shape[3] > 1
    turned = (values or partial(faded_values, scan)) if per_feature else scan
    of_q = turned(gs, vs, ks, fade)
    of_k = turned(vs.flip(2), gs.flip(2), qs.flip(2), later).flip(2)
    of_v = scan(ks.flip(2), qs.flip(2), gs.flip(2), later).flip(2)
    of_decay = None
    if log_decay is not None:
        passing = (qs * of_q - ks * of_k).flip(2).cumsum(2).flip(2)
        passing = passing if per_feature else passing.sum(-1, keepdim=True)
        of_groups = passing.reshape(*k.shape[:2], share, keys, -1).sum(2)
        of_decay = of_groups.sum_to_size(log_decay.shape).to(log_decay.dtype)
    return (
        of_q[:, :, offset : offset + q.shape[2]].to(q.dtype),
        _of_groups(of_k, k),
        _of_groups(of_v, v),
        of_decay,
    )


def faded_values(scan: Scan, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None) -> Tensor:
    """Return ``o_if = sum over j <= i of (q_i · k_j) fade_ijf v_jf``, each ``f`` as a head of its own."""
    assert log_decay is not None
    B, H, tokens, features = v.shape
    q, k = (x.repeat_interleave(features, dim=1) for x in (q, k))
    v, log_decay = (x.mT.reshape(B, H * features, tokens, 1) for x in (v, log_decay))
    return scan(q, k, v, log_decay).reshape(B, H, features, tokens).mT


def _of_groups(of_heads: Tensor, operand: Tensor) -> Tensor:
    """Return ``[B, G, J, D]``: what all heads that read one key head ask of it."""
    B, G, keys, width = operand.shape
    return of_heads.reshape(B, G, -1, keys, width).sum(2).to(operand.dtype)
