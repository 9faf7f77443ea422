"""Flow attention by its definition: plain, in float32 or wider."""

from __future__ import annotations

import torch

from rewriter.kernels.flow.constants import FLOW_EPSILON
from rewriter.kernels.softmax.definition import Operands

__all__ = ["causal_flow_attention", "flow_attention"]


def flow_attention(x: Operands) -> torch.Tensor:
    """Return attention with conserved flows (Wu et al., *Flowformer*), ``[B, H, I, E]``.

    With ``φ = sigmoid``, what flows into query ``i`` is ``I_i = φ(q_i) · sum of φ(k)``, out of key ``j``
    ``O_j = φ(k_j) · sum of φ(q)``. Where every key gives 1 away, query ``i`` receives
    ``Î_i = φ(q_i) · sum of φ(k) / O``; where every query takes 1, key ``j`` gives
    ``Ô_j = φ(k_j) · sum of φ(q) / I``. Keys compete by ``softmax(Ô) · J``, queries are allocated
    ``sigmoid(Î · I / J)``, where ``Ô`` is held between -1 and 1.

    Parameters
    ----------
    x
        Operands without bias and band; the scale is not read.
    """
    wide = torch.promote_types(x.q.dtype, torch.float32)
    share, queries, keys = x.q.shape[1] // x.k.shape[1], x.q.shape[2], x.k.shape[2]
    k, v = (t.to(wide).repeat_interleave(share, dim=1) for t in (x.k, x.v))
    q, k = x.q.to(wide).sigmoid(), k.sigmoid()
    incoming = (q * k.sum(dim=2, keepdim=True)).sum(dim=3, keepdim=True) + FLOW_EPSILON
    outgoing = (k * q.sum(dim=2, keepdim=True)).sum(dim=3, keepdim=True) + FLOW_EPSILON
    received = (q * (k / outgoing).sum(dim=2, keepdim=True)).sum(dim=3, keepdim=True)
    given = (k * (q / incoming).sum(dim=2, keepdim=True)).sum(dim=3, keepdim=True)
    competition = given.clamp(-1.0, 1.0).softmax(dim=2) * keys
    allocation = torch.sigmoid(received * (queries / keys))
    sums = torch.einsum("bhjf,bhje->bhfe", k, v * competition)
    return torch.einsum("bhif,bhfe->bhie", q / incoming, sums) * allocation


def causal_flow_attention(x: Operands) -> torch.Tensor:
    """Return attention with flows from a token and those before it only, ``[B, H, I, E]``.

    `flow_attention` of as many queries as keys, written with means over all tokens in place of sums,
    ``I_i = φ(q_i) · mean of φ(k)`` and so on; here every mean is over the tokens up to one's own, so that no
    token knows of later ones. Of one token both are the same.

    Source: Wu et al., *Flowformer*, the causal version.

    Parameters
    ----------
    x
        Operands without bias, as many queries as keys; the scale is not read.
    """
    wide = torch.promote_types(x.q.dtype, torch.float32)
    share = x.q.shape[1] // x.k.shape[1]
    k, v = (t.to(wide).repeat_interleave(share, dim=1) for t in (x.k, x.v))
    q, k = x.q.to(wide).sigmoid(), k.sigmoid()
    incoming = (q * _means(k)).sum(dim=3, keepdim=True) + FLOW_EPSILON
    outgoing = (k * _means(q)).sum(dim=3, keepdim=True) + FLOW_EPSILON
    received = (q * _means(k / outgoing)).sum(dim=3, keepdim=True)
    given = (k * _means(q / incoming)).sum(dim=3, keepdim=True)
    offer = given.clamp(-1.0, 1.0).exp()
    competition = offer / _means(offer)
    pairs = torch.einsum("bhif,bhjf->bhij", q / incoming, k).tril()
    count = torch.arange(1, q.shape[2] + 1, dtype=wide, device=q.device)[:, None]
    return torch.einsum("bhij,bhje->bhie", pairs, v * competition) / count * received.sigmoid()


def _means(x: torch.Tensor) -> torch.Tensor:
    """Return the mean of the tokens ``[B, H, N, F]`` up to each."""
    return x.cumsum(dim=2) / torch.arange(1, x.shape[2] + 1, dtype=x.dtype, device=x.device)[:, None]
