"""Exponentials that are divided by something other than their own sum over the keys."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.sites.look_alikes.case import QKV, LookAlike, kt

ELSE = ("something else", "another axis", "constant", "not", "no softmax", "")


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ kt(k) * 0.3


def plus_epsilon(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = scores(q, k).exp()
    return (e / (e.sum(-1, keepdim=True) + 0.1)) @ v


def plus_epsilon_after(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = scores(q, k).exp()
    return (e @ v) / (e.sum(-1, keepdim=True) + 0.1)


def plus_tiny_epsilon(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Far below the precision: equal numbers for most scores, and zeros where no key is visible."""
    e = scores(q, k).exp()
    return (e / (e.sum(-1, keepdim=True) + 1e-20)) @ v


def clamped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = scores(q, k).exp()
    return (e / e.sum(-1, keepdim=True).clamp(min=9.0)) @ v


def plus_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``softmax1``: a sink whose logit is 0 before the maximum is subtracted."""
    e = scores(q, k).exp()
    return (e / (1 + e.sum(-1, keepdim=True))) @ v


def plus_one_after_the_maximum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Not ``softmax1``: the logit of the sink is the row's maximum."""
    s = scores(q, k)
    e = (s - s.amax(-1, keepdim=True)).exp()
    return (e / (1 + e.sum(-1, keepdim=True))) @ v


def other_temperature(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = scores(q, k)
    return (s.exp() / (2 * s).exp().sum(-1, keepdim=True)) @ v


def of_other_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (scores(q, k).exp() / scores(q, k + 1).exp().sum(-1, keepdim=True)) @ v


def of_unmasked_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Masked weights over the sum of the unmasked exponentials: they do not sum to one."""
    e = scores(q, k).exp()
    return ((e * (v[..., :1].mT > 0)) / e.sum(-1, keepdim=True)) @ v


def of_unmasked_scores_after(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = scores(q, k).exp()
    return ((e * (v[..., :1].mT > 0)) @ v) / e.sum(-1, keepdim=True)


def another_sum_is_zero(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """No guard: what is tested is not what is divided by."""
    e = scores(q, k).exp()
    total = e.sum(-1, keepdim=True)
    return (e @ v) / torch.where(q.relu().sum(-1, keepdim=True) == 0, 1.0, total)


def part_of_the_sum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = scores(q, k).exp()
    return (e / e[..., :4].sum(-1, keepdim=True)) @ v


def running_sum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = scores(q, k).exp()
    return (e / e.cumsum(-1)) @ v


def maximum_of_others(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Exact: whatever is subtracted from a whole row cancels."""
    s = scores(q, k)
    e = (s - scores(q, k + 1).amax(-1, keepdim=True)).exp()
    return (e / e.sum(-1, keepdim=True)) @ v


def larger_epsilon(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Not lost beside a sum that is 1 or more: the weights sum to less than 1."""
    s = scores(q, k)
    e = (s - s.amax(-1, keepdim=True)).exp()
    return (e / (e.sum(-1, keepdim=True) + 1e-2)) @ v


def two_at_least(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = scores(q, k)
    e = (s - s.amax(-1, keepdim=True)).exp()
    return (e / e.sum(-1, keepdim=True).clamp(min=2.0)) @ v


def one_at_least_of_less(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The maximum is that of other scores: the sum may be anything."""
    s = scores(q, k)
    e = (s - scores(q, 2 * k).abs().amax(-1, keepdim=True)).exp()
    return (e / e.sum(-1, keepdim=True).clamp(min=1.0)) @ v


def one_at_least_of_what_is_left(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The largest exponential may be one that is hidden after it is computed."""
    s = scores(q, k)
    e = (s - s.amax(-1, keepdim=True)).exp() * (v.sum(-1) > 0)[:, :, None]
    return (e / e.sum(-1, keepdim=True).clamp(min=1.0)) @ v


def two_maxima(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The numerator is shifted by the row's maximum, the denominator by that of the whole tensor."""
    s = scores(q, k)
    top = (s - s.amax(-1, keepdim=True)).exp()
    return (top / (s - s.amax()).exp().sum(-1, keepdim=True)) @ v


def shift_by_key(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Exact with a bias: the maximum is over the queries, so it differs from key to key and stays."""
    s = scores(q, k)
    e = (s - s.amax(-2, keepdim=True)).exp()
    return (e / e.sum(-1, keepdim=True)) @ v


def shift_by_key_in_the_numerator(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = scores(q, k)
    e = (s - s.amax(-2, keepdim=True)).exp()
    return (e / s.exp().sum(-1, keepdim=True)) @ v


def no_denominator(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = scores(q, k)
    return (s - s.amax(-1, keepdim=True)).exp() @ v


def absolute_sum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = scores(q, k)
    return (s / s.abs().sum(-1, keepdim=True)) @ v


def square_root_of_the_sum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = scores(q, k).exp()
    return (e / e.sum(-1, keepdim=True).sqrt()) @ v


def l2(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = scores(q, k).exp()
    return (e / e.square().sum(-1, keepdim=True).sqrt()) @ v


def power_of_two_over_power_of_e(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = scores(q, k)
    return (s.exp2() / s.exp().sum(-1, keepdim=True)) @ v


def exp_minus_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = scores(q, k).expm1()
    return (e / e.sum(-1, keepdim=True)) @ v


def log_of_softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The logarithm itself meets the values."""
    return scores(q, k).log_softmax(-1) @ v


def logsumexp_of_others(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (scores(q, k) - scores(q, k + 1).logsumexp(-1, keepdim=True)).exp() @ v


def logsumexp_over_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = scores(q, k)
    return (s - s.logsumexp(-2, keepdim=True)).exp() @ v


def softmin(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention with a negative scale."""
    return (-scores(q, k)).softmax(-1) @ v


def mean(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Divided by the number of keys, as if that were the sum."""
    e = scores(q, k).exp()
    return (e / e.shape[-1]) @ v


EXACT = ("attention",)
UNNORMALISED = ("unnormalised-attention",)
CHANGED = ("attention", "unnormalised-attention")
TRAIT = ("weight-function",)

CASES: dict[str, LookAlike] = {
    "plus an epsilon": LookAlike(plus_epsilon, QKV, (*EXACT, *UNNORMALISED), ("sink",), ELSE),
    "plus an epsilon, after the values": LookAlike(
        plus_epsilon_after, QKV, (*EXACT, *UNNORMALISED), ("sink",), ELSE
    ),
    "plus a tiny epsilon": LookAlike(plus_tiny_epsilon, QKV, (*EXACT, *UNNORMALISED), ("sink",), ELSE),
    "clamped": LookAlike(clamped, QKV, CHANGED, TRAIT, ELSE),
    "plus one": LookAlike(plus_one, QKV, EXACT, ("sink",), ELSE),
    "plus one after the maximum": LookAlike(plus_one_after_the_maximum, QKV, CHANGED, TRAIT, ELSE),
    "of another temperature": LookAlike(other_temperature, QKV, UNNORMALISED, reason=ELSE),
    "of other scores": LookAlike(of_other_scores, QKV, UNNORMALISED, reason=ELSE),
    "of scores without the mask": LookAlike(
        of_unmasked_scores, QKV, (*EXACT, *UNNORMALISED), ("weight-function",), ELSE
    ),
    "of scores without the mask, after the values": LookAlike(
        of_unmasked_scores_after, QKV, (*EXACT, *UNNORMALISED), ("weight-function",), ELSE
    ),
    "another sum is zero": LookAlike(another_sum_is_zero, QKV, UNNORMALISED, reason=ELSE),
    "part of the sum": LookAlike(part_of_the_sum, QKV, UNNORMALISED, reason=ELSE),
    "running sum": LookAlike(running_sum, QKV, UNNORMALISED, reason=ELSE),
    "maximum of other scores": LookAlike(maximum_of_others, QKV, EXACT),
    "plus an epsilon after the maximum": LookAlike(larger_epsilon, QKV, CHANGED, TRAIT, ELSE),
    "clamped above one": LookAlike(two_at_least, QKV, CHANGED, TRAIT, ELSE),
    "clamped, less a maximum of others": LookAlike(one_at_least_of_less, QKV, CHANGED, TRAIT, ELSE),
    "clamped, and masked after the maximum": LookAlike(
        one_at_least_of_what_is_left, QKV, CHANGED, TRAIT, ELSE
    ),
    "two maxima": LookAlike(two_maxima, QKV, UNNORMALISED, reason=ELSE),
    "maximum per key": LookAlike(shift_by_key, QKV, EXACT, reason=ELSE),
    "maximum per key in the numerator alone": LookAlike(
        shift_by_key_in_the_numerator, QKV, UNNORMALISED, reason=ELSE
    ),
    "no denominator": LookAlike(no_denominator, QKV, UNNORMALISED),
    "absolute sum": LookAlike(absolute_sum, QKV, (*UNNORMALISED, "linear-attention")),
    "square root of the sum": LookAlike(square_root_of_the_sum, QKV, UNNORMALISED, reason=ELSE),
    "Euclidean norm": LookAlike(l2, QKV, UNNORMALISED),
    "powers of two over powers of e": LookAlike(power_of_two_over_power_of_e, QKV, UNNORMALISED),
    "exponential minus one": LookAlike(exp_minus_one, QKV, UNNORMALISED),
    "logarithm of the softmax": LookAlike(log_of_softmax, QKV, UNNORMALISED),
    "log-sum-exp of other scores": LookAlike(logsumexp_of_others, QKV, UNNORMALISED),
    "log-sum-exp over the queries": LookAlike(logsumexp_over_queries, QKV, (*UNNORMALISED, "slot-attention")),
    "softmin": LookAlike(softmin, QKV, EXACT),
    "mean": LookAlike(mean, QKV, UNNORMALISED),
}
