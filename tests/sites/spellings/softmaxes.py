"""How weights are normalised: by a softmax operator, by its parts, in another precision, guarded."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.sites.spellings.entry import EVERYWHERE, SCALE, B, D, H, L, S, Theme, kt

__all__ = ["SOFTMAXES"]

SOFTMAXES = Theme("softmaxes")


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ kt(k) * SCALE


def exponentials(q: Tensor, k: Tensor) -> Tensor:
    s = scores(q, k)
    return (s - s.amax(-1, keepdim=True)).exp()


def hidden() -> Tensor:
    """Hide what comes later, and everything from the first query."""
    seen = torch.ones(L, L, dtype=torch.bool).tril()
    seen[0, 0] = False
    return torch.zeros(L, L).masked_fill(~seen, -torch.inf)


@SOFTMAXES.spelling(scale=SCALE)
def nothing_subtracted(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    e = torch.exp(scores(q, keys))
    return (e / e.sum(-1, keepdim=True)) @ values


@SOFTMAXES.spelling(scale=SCALE)
def largest_of_all_subtracted(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    s = scores(q, keys)
    e = torch.exp(s - s.max())
    return (e / e.sum(-1, keepdim=True)) @ values


@SOFTMAXES.spelling(scale=SCALE)
def largest_with_its_place(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    s = scores(q, keys)
    e = torch.exp(s - s.max(-1, keepdim=True)[0].detach())
    return torch.div(e, torch.sum(e, dim=-1, keepdim=True)) @ values


@SOFTMAXES.spelling(scale=SCALE, routes=EVERYWHERE - {"torchscript"})
def powers_of_two(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    s = q @ kt(keys) * (SCALE * math.log2(math.e))
    e = torch.exp2(s - s.amax(-1, keepdim=True))
    return (e @ values) / e.sum(-1, keepdim=True)


@SOFTMAXES.spelling(scale=SCALE)
def logsumexp_subtracted(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    s = scores(q, keys)
    return torch.exp(s - torch.logsumexp(s, -1, keepdim=True)) @ values


@SOFTMAXES.spelling(scale=SCALE)
def exponential_of_log_softmax(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return F.log_softmax(scores(q, keys), -1).exp() @ values


@SOFTMAXES.spelling(scale=SCALE)
def times_one_over_the_sum(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    e = exponentials(q, keys)
    return (e * (1.0 / e.sum(-1, keepdim=True))) @ values


@SOFTMAXES.spelling(scale=SCALE)
def times_the_sum_to_minus_one(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    e = exponentials(q, keys)
    return (e * e.sum(-1, keepdim=True).pow(-1)) @ values


@SOFTMAXES.spelling(scale=SCALE)
def values_times_the_reciprocal(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    e = exponentials(q, keys)
    return (e @ values) * e.sum(-1, keepdim=True).reciprocal()


@SOFTMAXES.spelling(scale=SCALE)
def sum_by_a_product_with_ones(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    e = exponentials(q, keys)
    return (e @ values) / (e @ torch.ones(S, 1))


@SOFTMAXES.spelling(scale=SCALE)
def sum_by_einsum(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    e = exponentials(q, keys)
    return torch.einsum("bhij,bhjd->bhid", e, values) / torch.einsum("bhij->bhi", e)[..., None]


@SOFTMAXES.spelling(scale=SCALE)
def values_with_a_column_of_ones(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    o = exponentials(q, keys) @ torch.cat([values, torch.ones(B, H, S, 1)], -1)
    return o[..., :-1] / o[..., -1:]


@SOFTMAXES.spelling(scale=SCALE)
def values_padded_with_ones(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    o = exponentials(q, keys) @ F.pad(values, (0, 1), value=1.0)
    return o[..., :D] / o[..., D:]


@SOFTMAXES.spelling(scale=SCALE)
def logarithm_of_the_sum(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    s = scores(q, keys)
    m = s.amax(-1, keepdim=True)
    total = (s - m).exp().sum(-1, keepdim=True).log() + m
    return (s - total).exp() @ values


@SOFTMAXES.spelling(scale=SCALE)
def in_double_precision(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return scores(q, keys).double().softmax(-1).float() @ values


@SOFTMAXES.spelling(dtype=torch.bfloat16, routes=frozenset({"torch.export"}))
def brain_floats_in_single_precision(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    s = torch.matmul(q, kt(keys)).float() * SCALE
    return s.softmax(-1).bfloat16() @ values


@SOFTMAXES.spelling(dtype=torch.float16)
def halves_scaled_back_in_single_precision(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Queries are made smaller by the layer's number, so that halves do not overflow."""
    s = (q * (SCALE / 3)) @ kt(keys)
    return (s.float() * 3).softmax(-1).half() @ values


@SOFTMAXES.spelling(scale=SCALE)
def over_the_second_axis_of_keys_first(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    s = keys @ kt(q) * SCALE
    e = (s - s.amax(-2, keepdim=True)).exp()
    return kt(e / e.sum(-2, keepdim=True)) @ values


@SOFTMAXES.spelling(scale=SCALE)
def moved_to_the_last_axis_and_back(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    s = torch.einsum("bhqd,bhkd->kbhq", q, keys) * SCALE
    return torch.einsum("kbhq,bhkd->bhqd", s.permute(1, 2, 3, 0).softmax(-1).permute(3, 0, 1, 2), values)


@SOFTMAXES.spelling(mask="padding")
def exponentials_times_the_mask(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    e = exponentials(q, k) * keep[:, None, None]
    return (e / e.sum(-1, keepdim=True)) @ v


@SOFTMAXES.spelling(mask="padding")
def exponentials_times_the_mask_normalised_after_the_values(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor
) -> Tensor:
    e = exponentials(q, k) * keep[:, None, None]
    total = e.sum(-1, keepdim=True)
    return (e @ v) / torch.where(total == 0, 1.0, total)


@SOFTMAXES.spelling(mask="padding")
def one_added_to_sums_that_are_zero(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    e = exponentials(q, k) * keep[:, None, None]
    total = e.sum(-1, keepdim=True)
    return (e @ v) / (total + (total == 0).float())


@SOFTMAXES.spelling()
def weights_times_the_mask_and_normalised(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    p = scores(q, k).softmax(-1) * keep[:, None, None].float()
    return (p / p.sum(-1, keepdim=True)) @ v


@SOFTMAXES.spelling()
def what_is_not_a_number_replaced(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.nan_to_num((scores(q, k) + hidden()).softmax(-1)) @ v


@SOFTMAXES.spelling()
def what_is_not_a_number_found(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (scores(q, k) + hidden()).softmax(-1)
    return torch.where(torch.isnan(weights), torch.zeros_like(weights), weights) @ v


@SOFTMAXES.spelling()
def empty_rows_found(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = scores(q, k) + hidden()
    empty = (s == -torch.inf).all(-1, keepdim=True)
    return torch.where(empty, 0.0, s.softmax(-1)) @ v


@SOFTMAXES.spelling()
def zeros_where_hidden(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """Weights of hidden keys are zero already: filling them with zeros changes nothing."""
    gone = ~keep[:, None, None]
    return scores(q, k).masked_fill(gone, -torch.inf).softmax(-1).masked_fill(gone, 0.0) @ v


@SOFTMAXES.spelling()
def dropout_that_is_off(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return F.dropout(scores(q, keys).softmax(-1), 0.5, training=False) @ values


@SOFTMAXES.spelling(traits=("sink",))
def one_more_in_the_denominator(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    s = scores(q, keys)
    m = s.amax(-1, keepdim=True)
    e = (s - m).exp()
    return e / (e.sum(-1, keepdim=True) + (-m).exp()) @ values


@SOFTMAXES.spelling(scale=-SCALE)
def smallest_distance_first(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return F.softmin(scores(q, keys), -1) @ values


@SOFTMAXES.spelling(scale=SCALE)
def weights_returned_too(q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    weights = scores(q, keys).softmax(-1)
    return weights @ values, weights.mean(1)


@SOFTMAXES.spelling(scale=SCALE)
def least_that_a_sum_with_a_one_never_is(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    e = exponentials(q, keys)
    return e / e.sum(-1, keepdim=True).clamp(min=1e-6) @ values


@SOFTMAXES.spelling(scale=SCALE)
def epsilon_that_is_lost_beside_a_one(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    e = exponentials(q, keys)
    return e @ values / (e.sum(-1, keepdim=True) + 1e-9)


@SOFTMAXES.spelling(mask="causal")
def epsilon_beside_hidden_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    later = torch.ones(L, L, dtype=torch.bool).triu(1)
    s = scores(q, k).masked_fill(later, -1e9)
    e = (s - s.max(-1, keepdim=True)[0]).exp()
    return e / (1e-12 + e.sum(-1, keepdim=True)) @ v
