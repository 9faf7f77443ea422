"""Gradients of attention to near keys and averages, by their formulas: dense, plain, in float32 or wider."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from rewriter.kernels.pooled.definition import with_cells
from rewriter.kernels.softmax.definition import Operands
from rewriter.kernels.softmax.gradient import Gradients, softmax_gradient

__all__ = ["pooled_gradient"]


def pooled_gradient(x: Operands, grad: torch.Tensor, **axes: Any) -> Gradients:
    """Return the gradients of `rewriter.kernels.pooled.definition.pooled_attention`, each like its operand.

    The gradients of attention to keys and cells come first. With ``w`` the weights of the keys of a cell,
    which sum to 1, its key is ``m = sum of w k``, its value ``n = sum of w v`` and its bias ``c`` the
    logarithm of the sum of ``exp(b)``: besides its own gradient, key ``j`` has ``w_j dm``, and its bias
    ``w_j (dm · (k_j - m) + dn · (v_j - n) + dc)``.

    Parameters
    ----------
    x
        Operands; the bias is the same for all heads and queries.
    grad
        Gradient of the result, ``[B, H, I, E]``.
    axes
        The other parameters of the definition.
    """
    found = with_cells(x, **axes)
    keys, joined, wide = x.k.shape[2], found.joined, found.weight.dtype
    exact = replace(joined, q=x.q.to(wide), sink=None if x.sink is None else x.sink.to(wide))
    of_q, of_k, of_v, of_bias, of_sink = softmax_gradient(exact, found.seen, grad)
    assert of_bias is not None and joined.bias is not None
    behind = keys + found.cell.clamp(min=0)
    share = found.weight / joined.bias[:, 0, 0, behind].exp().clamp(min=torch.finfo(wide).tiny)
    share = (share * (found.cell >= 0))[:, None, :, None]
    own_bias = of_bias[..., :keys] + of_bias[..., behind] * share[..., 0][:, :, None]
    for of_both, both in ((of_k, joined.k), (of_v, joined.v)):
        apart = both[:, :, :keys] - both[:, :, behind]
        passed = (share * of_both[:, :, behind] * apart).sum((1, 3))[:, None, None]
        own_bias = own_bias + passed.sum_to_size(own_bias.shape)
    of_keys, of_values = (t[:, :, :keys] + share * t[:, :, behind] for t in (of_k, of_v))
    return (
        of_q.to(x.q.dtype),
        of_keys.to(x.k.dtype),
        of_values.to(x.v.dtype),
        None if x.bias is None else own_bias.sum_to_size(x.bias.shape).to(x.bias.dtype),
        None if of_sink is None or x.sink is None else of_sink.to(x.sink.dtype),
    )
