"""Normalised over an axis that is not the one summed with the values."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.sites.look_alikes.case import QKV, SAME, LookAlike, kt

OVER_QUERIES = ("quer", "another axis", "other axis", "not followed")
OVER_MORE = ("more axes", "another axis", "not followed")


def over_two_axes(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ kt(k)
    return scores.flatten(-2).softmax(-1).view(scores.shape) @ v


def over_heads_and_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q @ kt(k)).transpose(1, 2)
    return scores.flatten(-2).softmax(-1).view(scores.shape).transpose(1, 2) @ v


def over_batch_and_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q @ kt(k)).permute(1, 2, 0, 3)
    return scores.flatten(-2).softmax(-1).view(scores.shape).permute(2, 0, 1, 3) @ v


def over_blocks_of_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ kt(k)
    return scores.view(4, 4, 4, 2, 2).softmax(-1).flatten(-2) @ v


def by_sum_over_two_axes(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = (q @ kt(k)).exp()
    return (e / e.sum((-2, -1), keepdim=True)) @ v


def by_sum_over_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = (q @ kt(k)).exp()
    return (e / e.sum(-2, keepdim=True)) @ v


def by_sum_over_queries_after(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = (q @ kt(k)).exp()
    return (e @ v) / e.sum(-2).unsqueeze(-1)


def summed_over_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax over the keys; the values belong to the queries."""
    return kt((q @ kt(k)).softmax(-1)) @ v


def slot_attention(slots: Tensor, x: Tensor, v: Tensor) -> Tensor:
    weights = (slots @ kt(x)).softmax(-2) + 1e-8
    return (weights / weights.sum(-1, keepdim=True)) @ v


def heads_summed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax over the keys; the sum runs over the heads."""
    return torch.einsum("bhij,bhjd->bijd", (q @ kt(k)).softmax(-1), v)


def keys_and_heads_summed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bhij,bhjd->bid", (q @ kt(k)).softmax(-1), v)


def half_of_the_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ kt(k)).softmax(-1)[..., :3] @ v[:, :, :3]


def shifted_values(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The weights of keys 0..5 meet the values of keys 1..6."""
    return (q @ kt(k)).softmax(-1)[..., :6] @ v[:, :, 1:]


def one_key_without_a_value(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ kt(k)).softmax(-1)[..., 1:] @ v[:, :, 1:]


def every_other_key(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ kt(k)).softmax(-1)[..., ::2] @ v[:, :, ::2]


def values_of_the_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Weights over keys meet an axis of the same size that belongs to the heads."""
    return torch.einsum("bhij,bjhd->bhid", (q @ kt(k)).softmax(-1), v)


def summed_with_the_features(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ kt(k)).softmax(-1) @ kt(v)


ALL_EQUAL = {"shapes": SAME}

CASES: dict[str, LookAlike] = {
    "over the queries": LookAlike(
        lambda q, k, v: torch.softmax(q @ kt(k), -2) @ v, QKV, ("slot-attention",), reason=OVER_QUERIES
    ),
    "over the queries, sizes coincide": LookAlike(
        lambda q, k, v: torch.softmax(q @ kt(k), -2) @ v, SAME, ("slot-attention",), reason=OVER_QUERIES
    ),
    "over the heads": LookAlike(
        lambda q, k, v: torch.softmax(q @ kt(k), 1) @ v, SAME, reason=("another axis", "not followed")
    ),
    "over the batch": LookAlike(
        lambda q, k, v: torch.softmax(q @ kt(k), 0) @ v, SAME, reason=("another axis", "not followed")
    ),
    "over queries and keys": LookAlike(over_two_axes, reason=OVER_MORE),
    "over queries and keys, sizes coincide": LookAlike(over_two_axes, SAME, reason=OVER_MORE),
    "over heads and keys": LookAlike(over_heads_and_keys, SAME, reason=OVER_MORE),
    "over batch and keys": LookAlike(over_batch_and_keys, SAME, reason=OVER_MORE),
    "within blocks of keys": LookAlike(over_blocks_of_keys, SAME, reason=("more axes", "not followed")),
    "by the sum over two axes": LookAlike(
        by_sum_over_two_axes, SAME, reason=("another axis", "something else")
    ),
    "by the sum over the queries": LookAlike(
        by_sum_over_queries, SAME, ("slot-attention",), reason=("another axis", "something else", "quer")
    ),
    "by the sum over the queries, after the values": LookAlike(
        by_sum_over_queries_after, SAME, reason=("another axis", "something else", "quer")
    ),
    "summed over the queries": LookAlike(
        summed_over_queries,
        ((2, 4, 6, 8), (2, 4, 7, 8), (2, 4, 6, 5)),
        ("slot-attention",),
        reason=OVER_QUERIES,
    ),
    "summed over the queries, sizes coincide": LookAlike(
        summed_over_queries, SAME, ("slot-attention",), reason=OVER_QUERIES
    ),
    "slots, renormalised over the inputs": LookAlike(
        slot_attention, ((2, 5, 8), (2, 30, 8), (2, 30, 8)), ("slot-attention",), reason=("",)
    ),
    "summed over the heads": LookAlike(heads_summed, SAME, reason=("another axis", "not followed")),
    "summed over heads and keys": LookAlike(
        keys_and_heads_summed, SAME, reason=("more axes", "another axis")
    ),
    "half of the keys have values": LookAlike(
        half_of_the_keys, QKV, ("attention",), ("sink",), reason=("only some", "of which")
    ),
    "weights of the keys before": LookAlike(
        shifted_values, QKV, ("attention",), ("sink",), reason=("only some", "")
    ),
    "one key has no value": LookAlike(
        one_key_without_a_value, QKV, ("attention",), ("sink",), reason=("of which",)
    ),
    "every other key has a value": LookAlike(
        every_other_key, QKV, ("attention",), ("sink",), reason=("of which", "another axis")
    ),
    "values of the heads": LookAlike(values_of_the_heads, SAME, ("attention",)),
    "summed with the features of the values": LookAlike(summed_with_the_features, SAME, ("attention",)),
}
"""The last two are attention to values that are laid out in an unusual way, and must be exact."""
