"""Attention whose scores, weights or other parts something else reads: they must keep their values."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.sites.look_alikes.case import QKV, LookAlike, kt

Pair = tuple[Tensor, ...]


def weights_returned(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    w = (q @ kt(k)).softmax(-1)
    return w @ v, w


def scores_returned(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    s = q @ kt(k) * 0.3
    return s.softmax(-1) @ v, s


def mean_of_weights(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    w = (q @ kt(k)).softmax(-1)
    return w @ v, w.mean(1)


def two_values(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    """One set of weights, two sums."""
    w = (q @ kt(k)).softmax(-1)
    return w @ v, w @ k


def scores_of_the_next(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Residual attention: the scores are added to those of the next layer."""
    s = q @ kt(k)
    y = s.softmax(-1) @ v
    return (y @ kt(k) + s).softmax(-1) @ v


def weights_of_the_next(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The weights of one layer are a bias of the next."""
    w = (q @ kt(k)).softmax(-1)
    y = w @ v
    return (y @ kt(k) + w).softmax(-1) @ v


def transposed_weights_too(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    """Weights over the keys, and the same weights summed over the queries."""
    w = (q @ kt(k)).softmax(-1)
    return w @ v, kt(w) @ q


def output_reads_itself(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A gate between the two products."""
    w = (q @ kt(k)).softmax(-1)
    return (w @ v) * w.amax(-1, keepdim=True)


def rollout(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    """Weights multiplied from layer to layer."""
    k, v = k[:, :, :6], v[:, :, :6]
    first = (q @ kt(k)).softmax(-1)
    y = first @ v
    second = (y @ kt(k)).softmax(-1)
    return second @ v, second @ first


def products_shared(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    """Both directions of cross-attention from one product."""
    s = q @ kt(k)
    return s.softmax(-1) @ v, kt(s).softmax(-1) @ q


def keys_gathered_by_weights(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    """Tokens are kept by their weight: the choice must not change."""
    w = (q @ kt(k)).softmax(-1)
    best = w.mean((1, 2)).topk(3, -1).indices
    return w @ v, v.gather(2, best[:, None, :, None].expand(-1, 4, -1, 8))


def output_is_an_operand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The values are the result of the first, the keys of the second."""
    y = (q @ kt(k)).softmax(-1) @ v
    return (q @ kt(y)).softmax(-1) @ y


def shapes_read(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    w = (q @ kt(k)).softmax(-1)
    return w @ v, torch.zeros_like(w)


EXACT = ("attention",)
BOTH = ("attention", "slot-attention")
ANY = ("",)

CASES: dict[str, LookAlike] = {
    "weights returned": LookAlike(weights_returned, QKV, EXACT),
    "scores returned": LookAlike(scores_returned, QKV, EXACT),
    "mean of the weights": LookAlike(mean_of_weights, QKV, EXACT),
    "two values": LookAlike(two_values, QKV, EXACT, reason=ANY),
    "scores of the next layer": LookAlike(scores_of_the_next, QKV, EXACT, reason=ANY),
    "weights are the next bias": LookAlike(weights_of_the_next, QKV, EXACT, reason=ANY),
    "transposed weights too": LookAlike(transposed_weights_too, QKV, BOTH, reason=ANY),
    "gated by the weights": LookAlike(output_reads_itself, QKV, EXACT, reason=ANY),
    "weights of two layers multiplied": LookAlike(rollout, QKV, EXACT, reason=ANY),
    "both directions": LookAlike(products_shared, QKV, EXACT, reason=ANY),
    "tokens chosen by weight": LookAlike(keys_gathered_by_weights, QKV, EXACT, reason=ANY),
    "result is an operand": LookAlike(output_is_an_operand, ((2, 4, 6, 8),) * 3, EXACT, reason=ANY),
    "shapes are read": LookAlike(shapes_read, QKV, EXACT, reason=ANY),
}
