"""Sizes that hide which axis is which: ones, and sizes that coincide."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.sites.spellings.entry import SCALE, Theme, kt, soft

__all__ = ["SIZES"]

SIZES = Theme("sizes")


def of(*shape: int) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys("qkv", shape)


@SIZES.spelling(shapes=of(4, 4, 4, 4), mask="none", heads=4)
def all_equal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft(q @ kt(k) * SCALE, v)


@SIZES.spelling(shapes=of(4, 4, 4, 4), mask="none", heads=4)
def all_equal_and_heads_last(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.permute(0, 2, 1, 3) for x in (q, k, v))
    return soft(q @ kt(k) * SCALE, v).permute(0, 2, 1, 3)


@SIZES.spelling(shapes={"x": (4, 4, 48)}, mask="none", heads=4)
def all_equal_and_packed(x: Tensor) -> Tensor:
    q, k, v = x.view(4, 4, 3, 4, 4).permute(2, 0, 3, 1, 4)
    return soft(q @ kt(k) * SCALE, v).transpose(1, 2).reshape(4, 4, 16)


@SIZES.spelling(shapes=of(4, 4, 4, 4), mask="causal")
def all_equal_and_in_order(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft((q @ kt(k)).masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf), v)


@SIZES.spelling(shapes={"q": (3, 4, 1, 8), "k": (3, 4, 7, 8), "v": (3, 4, 7, 8)})
def one_query(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft(q @ kt(k) * SCALE, v)


@SIZES.spelling(shapes={"q": (3, 4, 7, 8), "k": (3, 4, 1, 8), "v": (3, 4, 1, 8)})
def one_key(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft(q @ kt(k) * SCALE, v)


@SIZES.spelling(shapes=of(1, 4, 7, 8), heads=4)
def one_entry_in_the_batch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft(q @ kt(k) * SCALE, v)


@SIZES.spelling(shapes=of(3, 1, 7, 8), heads=1)
def one_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft(q @ kt(k) * SCALE, v)


@SIZES.spelling(shapes={"q": (3, 4, 7, 1), "k": (3, 4, 7, 1), "v": (3, 4, 7, 8)})
def one_feature(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft(q @ kt(k) * SCALE, v)


@SIZES.spelling(shapes={"q": (3, 4, 7, 8), "k": (3, 4, 7, 8), "v": (3, 4, 7, 1)})
def one_feature_of_values(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft(q @ kt(k) * SCALE, v)


@SIZES.spelling(shapes=of(1, 1, 7, 8), heads=1)
def one_head_of_one_entry(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft(q @ kt(k) * SCALE, v)


@SIZES.spelling(shapes=of(7, 8), heads=1)
def neither_batch_nor_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft(q @ kt(k) * SCALE, v)


@SIZES.spelling(shapes=of(3, 7, 8))
def no_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft(q @ kt(k) * SCALE, v)


@SIZES.spelling(shapes={"x": (3, 7, 24)}, heads=1)
def one_head_squeezed_in(x: Tensor) -> Tensor:
    q, k, v = x.view(3, 7, 3, 1, 8).permute(2, 0, 3, 1, 4)
    return soft(q @ kt(k) * SCALE, v).squeeze(1)


@SIZES.spelling(shapes={"q": (3, 8), "k": (3, 7, 8), "v": (3, 7, 8)})
def one_query_without_an_axis(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("bd,bsd->bs", q, k).mul(SCALE).softmax(-1)
    return torch.einsum("bs,bsd->bd", weights, v)
