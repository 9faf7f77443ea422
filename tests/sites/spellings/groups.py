"""Fewer heads of keys and values than of queries, by every means."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.sites.spellings.entry import EVERYWHERE, SCALE, B, D, G, H, L, S, Theme, kt, soft

__all__ = ["GROUPS"]

GROUPS = Theme("groups")
EACH = H // G
GROUPED = {"shapes": dict.fromkeys(("keys", "values"), (B, G, S, D)), "heads": H, "kv_heads": G}
REPEATED = {"shapes": GROUPED["shapes"]}
"""Which heads share their keys is not proved."""

SHARED = {"shapes": dict.fromkeys(("keys", "values"), (B, S, D)), "heads": H, "kv_heads": 1}


@GROUPS.spelling(**GROUPED)
def products_with_a_unit_axis(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    s = q.view(B, G, EACH, L, D) @ kt(keys).unsqueeze(2) * SCALE
    return soft(s, values.unsqueeze(2)).view(B, H, L, D)


@GROUPS.spelling(**GROUPED)
def einsum_over_groups(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    s = torch.einsum("bghqd,bgkd->bghqk", q.unflatten(1, (G, EACH)), keys) * SCALE
    return torch.einsum("bghqk,bgkd->bghqd", s.softmax(-1), values).flatten(1, 2)


@GROUPS.spelling(**GROUPED)
def einsum_over_groups_second(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Head ``h`` reads keys of ``h % groups``: the group is the slower axis."""
    s = torch.einsum("bhgqd,bgkd->bhgqk", q.unflatten(1, (EACH, G)), keys) * SCALE
    return torch.einsum("bhgqk,bgkd->bhgqd", s.softmax(-1), values).flatten(1, 2)


@GROUPS.spelling(shapes={"x": (2, B, L, H * D), "memory": (2, B, S, D)}, heads=H, kv_heads=1)
def one_head_for_all_on_two_batch_axes(x: Tensor, memory: Tensor) -> Tensor:
    q = x.view(2, B, L, H, D).transpose(2, 3)
    k = memory.unsqueeze(2)
    return soft(q @ kt(k) * SCALE, k).transpose(2, 3).flatten(-2)


@GROUPS.spelling(**GROUPED)
def tiled(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    k, v = (x.repeat(1, EACH, 1, 1) for x in (keys, values))
    return soft(q @ kt(k) * SCALE, v)


@GROUPS.spelling(**REPEATED)
def stacked_and_flattened(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    k, v = (torch.stack([x] * EACH, 2).flatten(1, 2) for x in (keys, values))
    return soft(q @ kt(k) * SCALE, v)


@GROUPS.spelling(**REPEATED)
def heads_looked_up(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    k, v = (x[:, torch.arange(H) // EACH] for x in (keys, values))
    return soft(q @ kt(k) * SCALE, v)


@GROUPS.spelling(**GROUPED)
def queries_of_a_group_in_one_product(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    folded = q.reshape(B, G, EACH * L, D)
    return soft(folded @ kt(keys) * SCALE, values).view(B, H, L, D)


@GROUPS.spelling(**GROUPED, routes=EVERYWHERE - {"torchscript"})
def fused_with_groups(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, keys, values, enable_gqa=True)


@GROUPS.spelling(**GROUPED)
def fused_after_expansion(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    k, v = (x[:, :, None].expand(B, G, EACH, S, D).reshape(B, H, S, D) for x in (keys, values))
    return F.scaled_dot_product_attention(q, k, v)


@GROUPS.spelling(shapes={"q": (B, L, H, D), **dict.fromkeys("kv", (B, L, G, D))}, heads=H, kv_heads=G)
def repeated_with_heads_last(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (x.unsqueeze(3).repeat(1, 1, 1, EACH, 1).view(B, L, H, D) for x in (k, v))
    s = torch.einsum("bqhd,bkhd->bhqk", q, k) * SCALE
    return torch.einsum("bhqk,bkhd->bqhd", s.softmax(-1), v)


@GROUPS.spelling(**SHARED)
def one_head_of_keys_by_einsum(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    s = torch.einsum("bhid,bjd->bhij", q, keys) * SCALE
    return torch.einsum("bhij,bjd->bhid", s.softmax(-1), values)


@GROUPS.spelling(**SHARED)
def one_head_of_keys_by_a_unit_axis(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return soft(q @ kt(keys[:, None]) * SCALE, values[:, None])


@GROUPS.spelling(**SHARED)
def one_head_of_keys_in_one_product(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """All queries of all heads are rows of one matrix."""
    s = torch.baddbmm(torch.zeros(B, H * L, S), q.reshape(B, H * L, D), kt(keys), beta=0, alpha=SCALE)
    return torch.bmm(s.view(B, H, L, S).softmax(-1).view(B, H * L, S), values).view(B, H, L, D)


@GROUPS.spelling(**SHARED)
def one_head_of_keys_with_heads_inside(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Heads vary faster than queries in the rows of the product."""
    rows = q.transpose(1, 2).reshape(B, L * H, D)
    o = torch.bmm((torch.bmm(rows, kt(keys)) * SCALE).softmax(-1), values)
    return o.view(B, L, H * D)


@GROUPS.spelling(**SHARED)
def keys_are_values(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    both = keys + values
    return soft(q @ kt(both[:, None]) * SCALE, both[:, None])


@GROUPS.spelling(shapes={"keys": (B, 1, S, D)}, heads=H)
def shared_keys_and_own_values(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return soft(q @ kt(keys) * SCALE, values)


@GROUPS.spelling(shapes={"values": (B, 1, S, D)}, heads=H)
def own_keys_and_shared_values(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return soft(q @ kt(keys) * SCALE, values)
