"""Which keys a query sees: by order, distance, length, segment; added, filled, multiplied, compared."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.sites.spellings.entry import SCALE, B, D, H, L, S, Theme, kt, soft

__all__ = ["MASKS"]

MASKS = Theme("masks")
SMALLEST = torch.finfo(torch.float32).min


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ kt(k) * SCALE


def places() -> tuple[Tensor, Tensor]:
    """Positions of queries, down, and of keys, across."""
    return torch.arange(L)[:, None], torch.arange(L)[None]


def shown(seen: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft(scores(q, k).masked_fill(~seen, -torch.inf), v)


@MASKS.spelling(mask="causal")
class TriangleInABuffer(nn.Module):
    """A longer triangle than needed is kept; a number of its own is filled in."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.ones(16, 16, dtype=torch.bool).tril().view(1, 1, 16, 16))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen = self.seen[:, :, k.size(-2) - q.size(-2) : k.size(-2), : k.size(-2)]
        s = q @ kt(k) / torch.full([], D**0.5)
        return soft(torch.where(seen, s, torch.full([], SMALLEST)), v)


@MASKS.spelling(mask="causal")
def triangle_of_infinities_added(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft(scores(q, k) + torch.triu(torch.full((L, L), -torch.inf), diagonal=1), v)


@MASKS.spelling(mask="causal")
def transposed_triangle_filled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    seen = (torch.triu(torch.ones(L, L)) == 1).transpose(0, 1)
    hidden = seen.float().masked_fill(seen == 0, -torch.inf).masked_fill(seen == 1, 0.0)
    return soft(scores(q, k) + hidden, v)


@MASKS.spelling(mask="causal")
def positions_compared(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i, j = places()
    return shown(j <= i, q, k, v)


@MASKS.spelling(mask="causal")
def smallest_number_added(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i, j = places()
    return soft(scores(q, k) + torch.full((L, L), SMALLEST).mul(j > i), v)


@MASKS.spelling(traits=("score-function",))
def ten_thousand_subtracted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The mask multiplies the scores, and is taken from them."""
    seen = torch.ones(L, L).tril()
    return soft(scores(q, k) * seen - 1e4 * (1 - seen), v)


@MASKS.spelling(mask="padding")
def lengths_compared(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
    seen = torch.arange(L)[None] < lengths[:, None]
    return shown(seen[:, None, None], q, k, v)


@MASKS.spelling()
def ten_thousand_per_padded_key(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return soft(scores(q, k) + (1.0 - keep.float())[:, None, None] * -10000.0, v)


@MASKS.spelling()
def smallest_per_padded_key(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return soft(scores(q, k) + (1.0 - keep[:, None, None].float()) * SMALLEST, v)


@MASKS.spelling(mask="padding")
def padded_keys_filled(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return soft(scores(q, k).masked_fill(keep[:, None, None] == 0, -torch.inf), v)


@MASKS.spelling(mask="padding")
def padded_keys_filled_with_a_billion(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return soft(scores(q, k).masked_fill(keep.unsqueeze(1).unsqueeze(2) == 0, -1e9), v)


@MASKS.spelling()
def logarithm_of_the_mask_added(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return soft(scores(q, k) + keep[:, None, None].float().log(), v)


@MASKS.spelling(mask="causal+padding")
def order_and_padding(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    i, j = places()
    return shown((j <= i) & keep[:, None, None], q, k, v)


@MASKS.spelling()
def order_and_padding_added_apart(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    i, j = places()
    order = torch.zeros(L, L).masked_fill(j > i, -torch.inf)
    padding = torch.zeros(B, 1, 1, L).masked_fill(~keep[:, None, None], -torch.inf)
    return soft(scores(q, k) + order + padding, v)


@MASKS.spelling()
def four_axes_of_the_smallest(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """A mask of zeros and smallest numbers is made first, and added to every head's scores."""
    i, j = places()
    seen = (j <= i)[None, None] & keep[:, None, None]
    mask = torch.where(seen, 0.0, SMALLEST).expand(B, 1, L, L)
    return soft(scores(q, k) + mask, v)


@MASKS.spelling()
def padded_queries_too(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    seen = keep[:, None, :, None] & keep[:, None, None, :]
    return soft(scores(q, k).masked_fill(~seen, -1e9), v)


@MASKS.spelling()
def segments_compared(q: Tensor, k: Tensor, v: Tensor, segments: Tensor) -> Tensor:
    seen = segments[:, :, None] == segments[:, None]
    return shown(seen[:, None], q, k, v)


@MASKS.spelling()
def documents_counted_by_their_separators(q: Tensor, k: Tensor, v: Tensor, segments: Tensor) -> Tensor:
    document = (segments == 1).long().cumsum(-1)
    i, j = places()
    return shown((document[:, :, None] == document[:, None])[:, None] & (j <= i), q, k, v)


@MASKS.spelling(mask="window")
def distance_compared(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i, j = places()
    return shown((i - j).abs() <= 2, q, k, v)


@MASKS.spelling(mask="window")
def two_triangles(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    band = torch.triu(torch.tril(torch.ones(L, L)), diagonal=-2)
    return shown(band.bool(), q, k, v)


@MASKS.spelling(mask="window")
def order_and_distance(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i, j = places()
    return shown((j <= i) & (j > i - 3), q, k, v)


@MASKS.spelling()
def prefix_or_order(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i, j = places()
    return shown((j <= i) | (j < 3), q, k, v)


@MASKS.spelling()
def blocks_compared(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i, j = places()
    return shown(i // 3 == j // 3, q, k, v)


@MASKS.spelling()
def every_second(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i, j = places()
    return shown((i - j) % 2 == 0, q, k, v)


@MASKS.spelling()
def chosen_tokens_see_all(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i, j = places()
    return shown(((i - j).abs() <= 1) | (i == 0) | (j == 0), q, k, v)


@MASKS.spelling(shapes={"q": (B, H, 4, D)})
def positions_after_a_cache(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i, j = torch.arange(4)[:, None] + (L - 4), torch.arange(L)
    return shown(j <= i, q, k, v)


@MASKS.spelling()
def one_mask_per_head_of_a_flat_batch(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    hidden = ~keep.repeat_interleave(H, 0)[:, None].expand(B * H, L, L)
    return torch.bmm((torch.bmm(q, kt(k)) * SCALE).masked_fill(hidden, -torch.inf).softmax(-1), v)


@MASKS.spelling()
def expanded_to_all_scores(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    hidden = (~keep).view(B, 1, 1, L).expand(B, H, L, L)
    return soft(scores(q, k).masked_fill(hidden, -torch.inf), v)


@MASKS.spelling(shapes={"bias": (L, L)})
def a_bias_compared_with_zero(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return soft(scores(q, k).masked_fill(bias < -1.5, -1e9), v)


@MASKS.spelling(traits=("score-function",))
def clamped_to_the_smallest(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i, j = places()
    mask = torch.zeros(L, L).masked_fill(j > i, SMALLEST)
    return soft(torch.max(scores(q, k) + mask, torch.tensor(SMALLEST)), v)


@MASKS.spelling(mask="none")
def fused(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, keys, values)


@MASKS.spelling(mask="causal", scale=0.3)
def fused_and_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)


@MASKS.spelling(mask="padding")
def fused_with_truth_values(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=keep[:, None, None])


@MASKS.spelling(mask="bias")
def fused_with_a_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


@MASKS.spelling(shapes=dict.fromkeys("kv", (B, H, S, D)))
def last_queries_of_a_longer_sequence(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    seen = torch.ones(L, S, dtype=torch.bool).tril(diagonal=S - L)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


@MASKS.spelling(mask="causal")
def distance_by_a_step_function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i, j = places()
    return soft(scores(q, k) + torch.where(i - j < 0, -math.inf, 0.0), v)
