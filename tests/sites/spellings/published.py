"""The 32 spellings that fusers of other projects have been measured on."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.sites.spellings.entry import SCALE, B, D, G, H, L, S, Theme, kt, soft

__all__ = ["PUBLISHED"]

PUBLISHED = Theme("published")
INFINITY = math.inf
SMALLEST = torch.finfo(torch.float32).min


def causal() -> Tensor:
    return torch.ones(L, L, dtype=torch.bool).tril()


@PUBLISHED.spelling(scale=SCALE, mask="none")
def divided_by_the_root(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft(q @ kt(k) / math.sqrt(D), v)


@PUBLISHED.spelling(scale=SCALE, mask="none")
def times_the_scale(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft(q @ kt(k) * SCALE, v)


@PUBLISHED.spelling(scale=SCALE)
def the_scale_times(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft(SCALE * (q @ kt(k)), v)


@PUBLISHED.spelling(scale=SCALE)
def queries_scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft((q * SCALE) @ kt(k), v)


@PUBLISHED.spelling(scale=SCALE)
def keys_scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft(q @ kt(k * SCALE), v)


@PUBLISHED.spelling(scale=SCALE)
def root_of_the_scale_on_both(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft((q * SCALE**0.5) @ kt(k * SCALE**0.5), v)


@PUBLISHED.spelling(scale=1.0, mask="none")
def no_scale(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft(q @ kt(k), v)


@PUBLISHED.spelling(scale=SCALE, mask="bias")
def bias_added(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return soft(q @ kt(k) / math.sqrt(D) + bias, v)


@PUBLISHED.spelling(scale=SCALE, mask="bias")
def added_to_the_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return soft(bias + q @ kt(k) / math.sqrt(D), v)


@PUBLISHED.spelling(scale=SCALE, mask="bias")
def scaled_and_bias_added(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return soft(q @ kt(k) * SCALE + bias, v)


@PUBLISHED.spelling(scale=SCALE, mask="bias")
def two_biases(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return soft(q @ kt(k) * SCALE + bias + bias.T, v)


@PUBLISHED.spelling(mask="causal")
def where_with_infinity(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft(torch.where(causal(), q @ kt(k) * SCALE, -INFINITY), v)


@PUBLISHED.spelling(mask="causal")
def filled_with_infinity(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft((q @ kt(k) * SCALE).masked_fill(~causal(), -INFINITY), v)


@PUBLISHED.spelling(mask="causal")
def filled_with_the_smallest(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft((q @ kt(k) * SCALE).masked_fill(~causal(), SMALLEST), v)


@PUBLISHED.spelling(mask="causal")
def triangle_in_the_graph(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = q @ kt(k) * SCALE
    return soft(s.masked_fill(torch.tril(torch.ones_like(s)) == 0, -INFINITY), v)


@PUBLISHED.spelling(scale=SCALE)
def einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = torch.einsum("bhqd,bhkd->bhqk", q, k) * SCALE
    return torch.einsum("bhqk,bhkd->bhqd", s.softmax(-1), v)


@PUBLISHED.spelling(shapes=dict.fromkeys("qkv", (B, L, H, D)), heads=H)
def einsum_with_heads_last(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = torch.einsum("blhd,bmhd->bhlm", q, k) * SCALE
    return torch.einsum("bhlm,bmhd->blhd", s.softmax(-1), v)


@PUBLISHED.spelling(shapes=dict.fromkeys("qkv", (B, L, H, D)), heads=H)
def permuted_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = q.permute(0, 2, 1, 3), k.permute(0, 2, 3, 1), v.permute(0, 2, 1, 3)
    return soft(q @ k * SCALE, v).permute(0, 2, 1, 3)


@PUBLISHED.spelling(shapes=dict.fromkeys("qkv", (B, L, H, D)), heads=H)
def permuted_heads_and_transposed_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return soft(q @ k.transpose(2, 3) * SCALE, v).transpose(1, 2).contiguous()


@PUBLISHED.spelling(scale=SCALE)
def batched_product_of_matrices(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.reshape(B * H, L, D) for x in (q, k, v))
    return torch.bmm(torch.bmm(q, k.transpose(1, 2)).mul(SCALE).softmax(-1), v).view(B, H, L, D)


@PUBLISHED.spelling(scale=SCALE, mask="bias")
def bias_and_batched_product(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    q, k, v = (x.reshape(B * H, L, D) for x in (q, k, v))
    s = torch.baddbmm(bias.expand(B * H, L, L), q, k.transpose(1, 2), beta=1.0, alpha=SCALE)
    return torch.bmm(s.softmax(-1), v).view(B, H, L, D)


@PUBLISHED.spelling(dtype=torch.float16)
def softmax_in_more_precision(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = q @ kt(k) * SCALE
    return F.softmax(s, dim=-1, dtype=torch.float32).to(q.dtype) @ v


@PUBLISHED.spelling(scale=SCALE)
def exponential_over_its_sum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = q @ kt(k) * SCALE
    e = (s - s.amax(-1, keepdim=True)).exp()
    return (e / e.sum(-1, keepdim=True)) @ v


@PUBLISHED.spelling(scale=SCALE)
def normalised_after_the_values(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = q @ kt(k) * SCALE
    e = (s - s.amax(-1, keepdim=True)).exp()
    return (e @ v) / e.sum(-1, keepdim=True)


@PUBLISHED.spelling(scale=SCALE)
def transposed_scores(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    s = keys @ kt(q) * SCALE
    return torch.softmax(s, -2).transpose(-2, -1) @ values


@PUBLISHED.spelling(shapes=dict.fromkeys("kv", (B, G, L, D)), heads=H, kv_heads=G)
def groups_by_repetition(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (x.repeat_interleave(H // G, dim=1) for x in (k, v))
    return soft(q @ kt(k) * SCALE, v)


@PUBLISHED.spelling(shapes=dict.fromkeys("kv", (B, G, L, D)), heads=H, kv_heads=G)
def groups_by_expansion(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (x[:, :, None].expand(B, G, H // G, L, D).reshape(B, H, L, D) for x in (k, v))
    return soft(q @ kt(k) * SCALE, v)


@PUBLISHED.spelling(scale=SCALE)
def scores_returned_too(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    s = q @ kt(k) * SCALE
    return soft(s, v), s


@PUBLISHED.spelling(scale=SCALE, mask="none")
def keys_of_another_length(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return soft(q @ kt(keys) * SCALE, values)


@PUBLISHED.spelling(traits=("softcap",))
def softcapped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft(torch.tanh(q @ kt(k) * SCALE / 20) * 20, v)


@PUBLISHED.spelling(traits=("sink",), shapes={"bias": (H,)})
def sink_as_a_column_of_logits(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    s = torch.cat([q @ kt(k) * SCALE, bias.view(1, H, 1, 1).expand(B, H, L, 1)], -1)
    return torch.softmax(s, -1)[..., :-1] @ v


@PUBLISHED.spelling(scale=SCALE)
def cache_in_two_parts(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    s = torch.cat([q @ kt(keys), q @ kt(k)], -1) * SCALE
    past, new = s.softmax(-1).split([S, L], -1)
    return past @ values + new @ v
