"""Tensors that are written in place or moved between their uses, and several names for one tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.sites.look_alikes.case import QKV, SAME, LookAlike, kt

ONE = ((2, 4, 6, 8),)
HIDDEN = float("-inf")


def weights_cleared(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    w = (q @ kt(k)).softmax(-1)
    w[..., 0] = 0.0
    return w @ v


def weights_scaled_through_a_view(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    w = (q @ kt(k)).softmax(-1)
    w.view(-1)[::3].mul_(0.5)
    return w @ v


def scores_hidden_through_a_view(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Exact: the first three keys are hidden before the softmax."""
    s = q @ kt(k)
    s[..., :3].fill_(HIDDEN)
    return s.softmax(-1) @ v


def scores_hidden_too_late(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Exact and dense: the softmax has been taken."""
    s = q @ kt(k)
    w = s.softmax(-1)
    s[..., :3].fill_(HIDDEN)
    return w @ v, s


def keys_changed_after_use(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k = k * 1.0
    s = q @ kt(k)
    k.add_(1.0)
    return s.softmax(-1) @ v + k.sum()


def values_are_a_view_of_the_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The values are the keys as they are after a write."""
    k = k * 1.0
    values = k.view_as(k)
    s = q @ kt(k)
    k.mul_(2.0)
    return s.softmax(-1) @ values


def written_slices(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each half of the scores is written into one tensor."""
    s = torch.empty(2, 4, 6, 7)
    s[..., :4] = q @ kt(k[:, :, :4])
    s[..., 4:] = (q + 1) @ kt(k[:, :, 4:])
    return s.softmax(-1) @ v


def written_twice(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = torch.zeros(2, 4, 6, 8)
    out += (q @ kt(k)).softmax(-1) @ v
    out[:, 0] *= 2.0
    return out


def one_row_written(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = q @ kt(k)
    s[:, :, 2] = s[:, :, 3]
    return s.softmax(-1) @ v


def one_head_written(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = q @ kt(k)
    s[:, 1] = s[:, 2]
    return s.softmax(-1) @ v


def scores_flipped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every query is scored as the one at the other end, in the other example."""
    return (q @ kt(k)).flip((0, 2)).softmax(-1) @ v


def keys_and_weights_flipped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q @ kt(k)).masked_fill(~lower(), HIDDEN).flip(-1)
    return scores.softmax(-1).flip(-1) @ v


def every_other_key_backwards(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ kt(k)).flip(-1)[..., ::2].softmax(-1) @ v[:, :, ::2]


def one_input_thrice(x: Tensor) -> Tensor:
    return (x @ kt(x)).softmax(-1) @ x


def values_are_transposed_queries(x: Tensor) -> Tensor:
    """Exact: the keys are the queries with heads and tokens exchanged."""
    return (x @ kt(x.transpose(1, 2))).softmax(-1) @ x


def cache_written(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A row of the keys is replaced, after the scores were taken from the old ones."""
    keys = torch.cat([k, k], 2)
    old = q @ kt(keys)
    keys[:, :, 3] = q[:, :, 0]
    return old.softmax(-1) @ torch.cat([v, v], 2) + (q @ kt(keys)).softmax(-1) @ torch.cat([v, v], 2)


def added_to_a_broadcast(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = q @ kt(k)
    s += s.amax(-1, keepdim=True)
    s.div_(2.0).sub_(s.mean())
    return s.softmax(-1) @ v


def halves_exchanged(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    first, second = v.chunk(2, -1)
    kept = first.clone()
    v = torch.cat([second, first], -1)
    v[..., :4] += kept
    return (q @ kt(k)).softmax(-1) @ v


def lower() -> Tensor:
    return torch.ones(6, 7, dtype=torch.bool).tril()


def flipped_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal over keys and values that are both read backwards."""
    return (q @ kt(k.flip(2))).masked_fill(~lower(), HIDDEN).softmax(-1) @ v.flip(2)


def shifted_values(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ kt(k)).masked_fill(~lower(), HIDDEN).softmax(-1) @ v.roll(1, 2)


EXACT = ("attention",)
ANY = ("",)

CASES: dict[str, LookAlike] = {
    "weights cleared": LookAlike(weights_cleared, QKV, EXACT, ("weight-function",), ANY),
    "weights scaled through a view": LookAlike(
        weights_scaled_through_a_view, QKV, EXACT, ("weight-function",), ANY
    ),
    "scores hidden through a view": LookAlike(scores_hidden_through_a_view, QKV, EXACT, reason=ANY),
    "scores hidden too late": LookAlike(scores_hidden_too_late, QKV, EXACT, reason=ANY),
    "keys changed after use": LookAlike(keys_changed_after_use, QKV, EXACT, reason=ANY),
    "values are a view of the keys": LookAlike(values_are_a_view_of_the_keys, QKV, EXACT, reason=ANY),
    "scores written in halves": LookAlike(written_slices, QKV, EXACT, reason=ANY),
    "written twice": LookAlike(written_twice, QKV, EXACT, reason=ANY),
    "one row written": LookAlike(one_row_written, QKV, EXACT, reason=ANY),
    "scores flipped": LookAlike(scores_flipped, QKV, EXACT, reason=ANY),
    "scores and weights flipped": LookAlike(keys_and_weights_flipped, QKV, EXACT, reason=ANY),
    "every other key, backwards": LookAlike(every_other_key_backwards, QKV, EXACT, reason=ANY),
    "one head written": LookAlike(one_head_written, QKV, EXACT, reason=ANY),
    "one input, three times": LookAlike(one_input_thrice, ONE, EXACT, reason=ANY),
    "keys are exchanged queries": LookAlike(values_are_transposed_queries, (SAME[0],), EXACT, reason=ANY),
    "a row of the cache replaced": LookAlike(cache_written, QKV, EXACT, reason=ANY),
    "added to a broadcast": LookAlike(added_to_a_broadcast, QKV, EXACT, reason=ANY),
    "causal, keys and values backwards": LookAlike(flipped_keys, QKV, EXACT, reason=ANY),
    "causal, values rolled": LookAlike(shifted_values, QKV, EXACT, reason=ANY),
    "halves exchanged": LookAlike(halves_exchanged, QKV, EXACT, reason=ANY),
}
"""All may be attention to what the tensors held at the time, and then exactly that."""
