"""Linear attention by its definition: plain, in float32 or wider."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch

from rewriter.kernels.linear.constants import VARIANCE_EPSILON
from rewriter.kernels.softmax.definition import Operands, band_mask

__all__ = [
    "FEATURES",
    "efficient_attention",
    "elu_features",
    "fastmax_features",
    "hedgehog_features",
    "linear_attention",
    "relu_features",
    "taylor_features",
]

Features = Callable[[torch.Tensor], torch.Tensor]


def elu_features(x: torch.Tensor) -> torch.Tensor:
    """Return ``elu(x) + 1`` (Katharopoulos et al., *Transformers are RNNs*)."""
    return torch.where(x > 0, x + 1, torch.exp(x.clamp(max=0)))


def relu_features(x: torch.Tensor) -> torch.Tensor:
    """Return ``max(x, 0)``."""
    return x.clamp(min=0)


def taylor_features(x: torch.Tensor, order: int) -> torch.Tensor:
    """Return features ``[…, F]`` whose products are ``sum of (q · k)^n / n!`` for ``n`` up to ``order``.

    Parameters
    ----------
    x
        ``[…, D]``.
    order
        1 or 2; ``F`` is ``1 + D`` or ``1 + D + D²``.
    """
    monomials = [torch.ones_like(x[..., :1]), x]
    if order == 2:
        monomials.append((x[..., :, None] * x[..., None, :]).flatten(-2) / math.sqrt(2))
    return torch.cat(monomials, dim=-1)


def fastmax_features(x: torch.Tensor, order: int) -> torch.Tensor:
    """Return `taylor_features` of tokens that are brought to mean 0 and variance 1.

    Gerami et al., *FAST: Factorizable Attention for Speeding up Transformers*.
    """
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    return taylor_features(centred / (variance + VARIANCE_EPSILON).sqrt(), order)


def hedgehog_features(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return ``softmax([y, -y])`` over the features, with ``y = x weight + bias``.

    Zhang et al., *The Hedgehog & the Porcupine: Expressive Linear Attentions with Softmax Mimicry*.

    Parameters
    ----------
    x
        ``[B, H, N, D]``.
    weight, bias
        ``[H, D, F]`` and ``[H, F]``: each head has its own.

    Returns
    -------
    torch.Tensor
        ``[B, H, N, 2 F]``.
    """
    y = torch.einsum("bhnd,hdf->bhnf", x, weight.to(x)) + bias.to(x)[:, None]
    return torch.cat([y, -y], dim=-1).softmax(dim=-1)


def linear_attention(
    x: Operands, features: Features, of_keys: Features | None = None, *, scaled: bool = False
) -> torch.Tensor:
    """Return ``[B, H, I, E]``: weights are products of features, divided by their sum over the keys.

    The weight of key ``j`` for query ``i`` is ``φ(q_i) · φ(k_j) · exp(bias_j)`` where the band shows the
    key, else 0. A query whose weights add up to 0 gives 0. Without a band keys and values are summed first,
    as the lowering does it: products of entries have both signs, and how well their sums are determined in
    single precision depends on the order.

    Parameters
    ----------
    x
        Operands without soft cap and sinks; without a band the bias depends on keys only.
    features
        ``φ``, of float32 or wider.
    of_keys
        The map of keys ``[B, H, J, D]``, repeated for the heads that share them, where it is another one.
    scaled
        Multiply the queries by the scale, which is not used otherwise.
    """
    q, k, v = _wide(x)
    q, k = features(q * x.scale if scaled else q), (of_keys or features)(k)
    if x.band is None:
        weight = torch.ones(1, 1, k.shape[2], 1) if x.bias is None else x.bias[..., -1:, :].mT.exp()
        weight = weight.to(k)
        total = torch.einsum("bhif,bhf->bhi", q, (k * weight).sum(dim=2))[..., None]
        found = torch.einsum("bhif,bhfe->bhie", q, torch.einsum("bhjf,bhje->bhfe", k * weight, v))
    else:
        weights = torch.einsum("bhif,bhjf->bhij", q, k) * band_mask(x.band, q.shape[2], k.shape[2]).to(k)
        if x.bias is not None:
            weights = weights * x.bias.to(k).exp()
        total = weights.sum(dim=-1, keepdim=True)
        found = torch.einsum("bhij,bhje->bhie", weights, v)
    return found / total.where(total != 0, torch.inf)


def efficient_attention(x: Operands) -> torch.Tensor:
    """Return ``softmax_features(q) · (softmax_keys(k)ᵀ v)`` (Shen et al., *Efficient Attention*).

    Weights add up to 1 by themselves. Hidden keys take no part in the softmax; where all are hidden the
    result is 0.

    Parameters
    ----------
    x
        Operands without band; the bias depends on keys only, the scale is not read.
    """
    q, k, v = _wide(x)
    if x.bias is not None:
        k = k + x.bias[..., -1:, :].to(k.dtype).transpose(-1, -2)
    shares = k.softmax(dim=2).nan_to_num(nan=0.0)
    weights = torch.einsum("bhif,bhjf->bhij", q.softmax(dim=-1), shares)
    return torch.einsum("bhij,bhje->bhie", weights, v)


def _wide(x: Operands) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    wide = torch.promote_types(x.q.dtype, torch.float32)
    share = x.q.shape[1] // x.k.shape[1]
    k, v = (t.to(wide).repeat_interleave(share, dim=1) for t in (x.k, x.v))
    return x.q.to(wide), k, v


FEATURES: dict[str, Features] = {
    "elu": elu_features,
    "relu": relu_features,
    "taylor1": partial(taylor_features, order=1),
    "taylor2": partial(taylor_features, order=2),
    "fastmax1": partial(fastmax_features, order=1),
    "fastmax2": partial(fastmax_features, order=2),
}
"""Feature maps by name."""
