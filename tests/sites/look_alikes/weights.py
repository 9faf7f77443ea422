"""Weights that are a softmax of something else, or are changed before they meet the values."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.sites.look_alikes.case import QKV, SAME, LookAlike, kt

CHANGED = ("changed after", "weights", "mix", "")


def soft(q: Tensor, k: Tensor) -> Tensor:
    return (q @ kt(k) * 0.3).softmax(-1)


def renormalised(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    w = soft(q, k) * v[..., 0].sigmoid().unsqueeze(-2)
    return (w / w.sum(-1, keepdim=True)) @ v


def top_two(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    w = soft(q, k)
    return torch.where(w >= w.topk(2, -1).values[..., -1:], w, 0.0) @ v


def top_two_of_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention to a mask that depends on the scores."""
    s = q @ kt(k)
    return s.masked_fill(s < s.topk(2, -1).values[..., -1:], float("-inf")).softmax(-1) @ v


def guarded_by_another(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Zeros where other weights are not a number."""
    w, other = soft(q, k), soft(q + 1, k)
    return torch.where(other.isnan(), 0.0, w) @ v


def guarded_with_ones(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = (q @ kt(k)).masked_fill(v[..., 0].unsqueeze(-2) > -9, float("-inf"))
    w = s.softmax(-1)
    return torch.where(w.isnan(), 1.0, w) @ v


def zeroed_where_the_mask_does_not_say(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    w = soft(q, k)
    return torch.where(torch.ones(6, 7).tril().bool(), w, 0.0) @ v


def straight_through(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    w = soft(q, k)
    hard = F.one_hot(w.argmax(-1), 7).to(w.dtype)
    return (hard + w - w.detach()) @ v


def clipped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (soft(q, k) * 1.1 - 0.05).clamp(0, 1) @ v


def mixed_with_uniform(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (0.9 * soft(q, k) + 0.1 / 7) @ v


def mixed_with_positions(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (0.5 * soft(q, k) + 0.5 * torch.arange(42.0).view(6, 7).softmax(-1)) @ v


def two_mixed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (soft(q, k) + soft(q + 1, k)) @ v


def difference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Differential attention in one product."""
    return (soft(q, k) - 0.4 * soft(q + 1, k)) @ v


def product_of_two(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (soft(q, k) * soft(q + 1, k)) @ v


def over_and_over(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft(q, k).softmax(-1) @ v


def softmax_of_log_softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Exact: the logarithm of a softmax differs from the scores by a number per row."""
    return (q @ kt(k)).log_softmax(-1).softmax(-1) @ v


def product_of_weights(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention whose values are weights."""
    w = (q @ kt(k)).softmax(-1)
    return w @ w


def gram_of_weights(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    w = (q @ kt(k)).softmax(-1)
    return w @ kt(w)


def squared_weights(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    w = soft(q, k)
    return torch.einsum("bhij,bhij,bhjd->bhid", w, w, v)


def purity(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    w = soft(q, k)
    return torch.einsum("bhij,bhij->bhi", w, w)


def entropy(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = q @ kt(k)
    return -(s.softmax(-1) * s.log_softmax(-1)).sum(-1)


def expected_score(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = q @ kt(k)
    return (s.softmax(-1) * s).sum(-1)


def values_per_pair(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Values that depend on the query too, as in relative values."""
    pair = q.unsqueeze(-2) * v.unsqueeze(-3)
    return torch.einsum("bhij,bhijd->bhid", soft(q, k), pair)


def per_channel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A softmax per channel of differences: vector attention."""
    s = q.unsqueeze(-2) - k.unsqueeze(-3)
    return (s.softmax(-2) * v.unsqueeze(-3)).sum(-2)


def per_channel_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A softmax per channel of products: each feature is a head of one feature."""
    s = q.unsqueeze(-2) * k.unsqueeze(-3)
    return (s.softmax(-2) * v.unsqueeze(-3)).sum(-2)


def active_dropout(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.dropout(soft(q, k), 0.5, training=True) @ v


def active_sdpa_dropout(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)


def noise(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (soft(q, k) + torch.rand_like(v[..., :1]).mT) @ v


def gumbel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.gumbel_softmax(q @ kt(k), tau=0.7) @ v


def hard_gumbel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.gumbel_softmax(q @ kt(k), hard=True) @ v


def rounded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (soft(q, k) * 16).round() / 16 @ v


def as_integers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((soft(q, k) * 7).to(torch.int32).to(q.dtype) / 7) @ v


def scores_as_integers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ kt(k)).to(torch.int32).to(q.dtype).softmax(-1) @ v


def smoothed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Weights averaged with those of the neighbouring key."""
    w = soft(q, k)
    return F.avg_pool1d(w.flatten(0, 1), 3, 1, 1).view_as(w) @ v


def rolled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention to rolled values: the weight of key j meets the value of key j - 1."""
    return soft(q, k).roll(1, -1) @ v


def sorted_weights(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft(q, k).sort(-1).values @ v


def running_weights(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft(q, k).cumsum(-1) @ v


def flipped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft(q, k).flip(-1) @ v


EXACT = ("attention",)
FUNCTION = ("weight-function",)
SCORE = ("score-function",)

CASES: dict[str, LookAlike] = {
    "masked afterwards": LookAlike(
        lambda q, k, v: (soft(q, k) * torch.ones(6, 7).tril()) @ v, QKV, EXACT, FUNCTION, CHANGED
    ),
    "masked by an input afterwards": LookAlike(
        lambda q, k, v, m: (soft(q, k) * m) @ v, (*QKV, (6, 7)), EXACT, FUNCTION, CHANGED
    ),
    "masked and normalised again": LookAlike(renormalised, QKV, EXACT, reason=CHANGED),
    "the largest two weights": LookAlike(top_two, QKV, EXACT, FUNCTION, CHANGED),
    "the largest two scores": LookAlike(top_two_of_scores, QKV, EXACT, reason=("",)),
    "zeros where other weights are NaN": LookAlike(guarded_by_another, QKV, EXACT, FUNCTION, ("",)),
    "ones where weights are NaN": LookAlike(guarded_with_ones, QKV, EXACT, FUNCTION, ("",)),
    "zeros where no mask says so": LookAlike(
        zeroed_where_the_mask_does_not_say, QKV, EXACT, FUNCTION, ("something other than the mask", "weights")
    ),
    "one-hot, straight through": LookAlike(straight_through, QKV, EXACT, FUNCTION, CHANGED),
    "clipped": LookAlike(clipped, QKV, EXACT, FUNCTION, CHANGED),
    "mixed with uniform weights": LookAlike(mixed_with_uniform, QKV, EXACT, FUNCTION, CHANGED),
    "mixed with positions": LookAlike(mixed_with_positions, QKV, EXACT, FUNCTION, CHANGED),
    "two softmaxes added": LookAlike(two_mixed, QKV, EXACT, FUNCTION, CHANGED),
    "difference of two softmaxes": LookAlike(difference, QKV, EXACT, FUNCTION, CHANGED),
    "product of two softmaxes": LookAlike(product_of_two, QKV, EXACT, FUNCTION, CHANGED),
    "softmax of a softmax": LookAlike(
        over_and_over, QKV, ("attention", "additive-attention"), SCORE, ("softmax", "product")
    ),
    "softmax of a log-softmax": LookAlike(
        softmax_of_log_softmax, QKV, ("attention", "additive-attention"), reason=("softmax", "product")
    ),
    "weights times weights": LookAlike(product_of_weights, SAME, EXACT, reason=("",)),
    "Gram matrix of weights": LookAlike(gram_of_weights, SAME, EXACT, reason=("",)),
    "squared weights": LookAlike(squared_weights, QKV, EXACT, FUNCTION, ("",)),
    "purity": LookAlike(purity, QKV, reason=("",)),
    "entropy": LookAlike(entropy, QKV, reason=("",)),
    "expected score": LookAlike(expected_score, QKV, reason=("",)),
    "values per pair": LookAlike(values_per_pair, ((2, 4, 7, 8),) * 3, EXACT, reason=("",)),
    "per channel, of differences": LookAlike(
        per_channel, ((2, 7, 8), (2, 7, 8), (2, 7, 8)), ("additive-attention",), reason=("",)
    ),
    "per channel, of products": LookAlike(
        per_channel_products,
        ((2, 7, 8), (2, 7, 8), (2, 7, 8)),
        ("attention", "additive-attention"),
        reason=("",),
    ),
    "active dropout": LookAlike(active_dropout, QKV, EXACT, FUNCTION, ("dropout", "not followed")),
    "active dropout of the fused operator": LookAlike(
        active_sdpa_dropout, QKV, EXACT, FUNCTION, ("dropout", "")
    ),
    "noise on the weights": LookAlike(noise, QKV, EXACT, FUNCTION, CHANGED),
    "Gumbel noise on the scores": LookAlike(gumbel, QKV, EXACT, reason=("",)),
    "hard Gumbel": LookAlike(hard_gumbel, QKV, EXACT, FUNCTION, ("",)),
    "rounded": LookAlike(rounded, QKV, EXACT, FUNCTION, ("",)),
    "weights as integers": LookAlike(as_integers, QKV, EXACT, FUNCTION, ("",)),
    "scores as integers": LookAlike(scores_as_integers, QKV, EXACT, SCORE, ("",)),
    "smoothed over the keys": LookAlike(smoothed, QKV, reason=("not followed", "")),
    "rolled over the keys": LookAlike(rolled, QKV, EXACT, reason=("",)),
    "sorted": LookAlike(sorted_weights, QKV, reason=("not followed", "")),
    "running sum": LookAlike(running_weights, QKV, reason=("not followed", "")),
    "flipped over the keys": LookAlike(flipped, QKV, EXACT, reason=("",)),
}
"""``attention`` without a trait is exact: a mask before the softmax, or values in another order."""
