"""Where batch, heads, tokens and features lie: windows, grids, axes and places of axes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.sites.spellings.entry import SCALE, B, D, E, H, L, S, Theme, kt, soft

__all__ = ["LAYOUTS"]

LAYOUTS = Theme("layouts")
GRID = {"image": (B, 4, 6, 3 * E)}
"""Queries, keys and values of every place of a grid, features last."""


def parts(x: Tensor) -> tuple[Tensor, ...]:
    """``[…, tokens, 3 · E]`` to three of ``[…, H, tokens, D]``."""
    return tuple(t.transpose(-3, -2) for t in x.unflatten(-1, (3, H, D)).unbind(-3))


def attend(x: Tensor) -> Tensor:
    q, k, v = parts(x)
    return soft(q @ kt(k) * SCALE, v).transpose(-3, -2).flatten(-2)


def windows(x: Tensor, side: int) -> Tensor:
    b, h, w, c = x.shape
    x = x.view(b, h // side, side, w // side, side, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, side * side, c)


def unwindowed(x: Tensor, side: int, h: int, w: int) -> Tensor:
    x = x.view(-1, h // side, w // side, side, side, x.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, h, w, x.shape[-1])


@LAYOUTS.spelling(shapes={"x": (L, B, 3 * E)}, heads=H)
def sequence_first(x: Tensor) -> Tensor:
    q, k, v = (t.reshape(L, B * H, D).transpose(0, 1) for t in x.chunk(3, -1))
    return torch.bmm(torch.bmm(q * SCALE, kt(k)).softmax(-1), v).transpose(0, 1).reshape(L, B, E)


@LAYOUTS.spelling(shapes=GRID, heads=H)
def windows_of_a_grid(image: Tensor) -> Tensor:
    return unwindowed(attend(windows(image, 2)), 2, 4, 6)


@LAYOUTS.spelling(shapes=GRID, heads=H)
class ShiftedWindows(nn.Module):
    """Windows of the rolled grid; tokens that the roll brought together do not see each other."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        place = torch.zeros(1, 4, 6, 1)
        for k, rows in enumerate((slice(0, -2), slice(-2, -1), slice(-1, None))):
            for j, columns in enumerate((slice(0, -2), slice(-2, -1), slice(-1, None))):
                place[:, rows, columns] = 3 * k + j
        region = windows(place, 2).squeeze(-1)
        different = region[:, None] != region[:, :, None]
        self.register_buffer("mask", torch.zeros(different.shape).masked_fill(different, -100.0))

    def forward(self, image: Tensor) -> Tensor:
        x = windows(image.roll((-1, -1), (1, 2)), 2)
        q, k, v = parts(x)
        s = (q * SCALE) @ kt(k)
        s = (s.view(B, -1, H, 4, 4) + self.mask[None, :, None]).view(-1, H, 4, 4)
        o = soft(s, v).transpose(1, 2).reshape(-1, 4, E)
        return unwindowed(o, 2, 4, 6).roll((1, 1), (1, 2))


@LAYOUTS.spelling(shapes=GRID, heads=H)
def windows_of_a_padded_grid(image: Tensor) -> Tensor:
    padded = F.pad(image, (0, 0, 0, 3, 0, 2))
    return unwindowed(attend(windows(padded, 3)), 3, 6, 9)[:, :4, :6]


@LAYOUTS.spelling(shapes=GRID, heads=H)
def places_of_equal_remainder(image: Tensor) -> Tensor:
    x = image.view(B, 2, 2, 2, 3, -1).permute(0, 2, 4, 1, 3, 5).reshape(B, 6, 4, -1)
    o = attend(x).view(B, 2, 3, 2, 2, E)
    return o.permute(0, 3, 1, 4, 2, 5).reshape(B, 4, 6, E)


@LAYOUTS.spelling(shapes=GRID, heads=H)
def along_the_rows(image: Tensor) -> Tensor:
    return attend(image)


@LAYOUTS.spelling(shapes=GRID, heads=H)
def along_the_columns(image: Tensor) -> Tensor:
    return attend(image.transpose(1, 2)).transpose(1, 2)


@LAYOUTS.spelling(shapes={"x": (B, 5, L, 3 * E)}, heads=H, sites=2)
def space_then_time(x: Tensor) -> Tensor:
    space = attend(x.reshape(B * 5, L, 3 * E)).view(B, 5, L, E)
    time = (x + torch.cat([space] * 3, -1)).transpose(1, 2).reshape(B * L, 5, 3 * E)
    return attend(time).view(B, L, 5, E)


@LAYOUTS.spelling(shapes=dict.fromkeys("qkv", (2, B, H, L, D)))
def einsum_with_an_ellipsis(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = torch.einsum("...qd,...kd->...qk", q, k) * SCALE
    return torch.einsum("...qk,...kd->...qd", s.softmax(-1), v)


@LAYOUTS.spelling(shapes=dict.fromkeys("qkv", (B, 4, 5, H, D)), heads=H)
def einsum_over_two_axes_of_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = torch.einsum("bxyhd,bijhd->bhxyij", q, k) * SCALE
    weights = s.flatten(-2).softmax(-1).view(s.shape)
    return torch.einsum("bhxyij,bijhd->bxyhd", weights, v)


@LAYOUTS.spelling()
def blocks_of_a_sequence(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.view(B, H, 2, L // 2, D) for x in (q, k, v))
    return soft(q @ kt(k) * SCALE, v).view(B, H, L, D)


@LAYOUTS.spelling()
def every_other_token(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.view(B, H, L // 2, 2, D).transpose(2, 3) for x in (q, k, v))
    return soft(q @ kt(k) * SCALE, v).transpose(2, 3).reshape(B, H, L, D)


@LAYOUTS.spelling()
def blocks_and_their_neighbours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each block of queries sees the block before, its own and the one after; the padding is masked."""

    def three(x: Tensor, fill: float) -> Tensor:
        x = F.pad(x, (0, 0, 2, 2), value=fill).unflatten(2, (5, 2))
        return torch.cat([x[:, :, :-2], x[:, :, 1:-1], x[:, :, 2:]], 3)

    real = three(torch.ones(1, 1, L, 1), 0.0)
    s = q.view(B, H, 3, 2, D) @ kt(three(k, 0.0)) * SCALE
    return soft(s.masked_fill(kt(real) == 0, -torch.inf), three(v, 0.0)).view(B, H, L, D)


@LAYOUTS.spelling(heads=H)
def values_before_weights(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    weights = (q @ kt(keys) * SCALE).softmax(-1)
    return kt(values) @ kt(weights)


@LAYOUTS.spelling()
def features_before_tokens(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    q, k, v = (x.transpose(2, 3).contiguous() for x in (q, keys, values))
    return (q.transpose(2, 3) @ k * SCALE).softmax(-1) @ v.transpose(2, 3)


@LAYOUTS.spelling(shapes=dict.fromkeys("qkv", (H, B, L, D)))
def heads_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = torch.einsum("hbqd,hbkd->hbqk", q, k) * SCALE
    return torch.einsum("hbqk,hbkd->bqhd", s.softmax(-1), v)


@LAYOUTS.spelling(shapes=dict.fromkeys("qkv", (B, L, D, H)), heads=H)
def heads_after_features(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.permute(0, 3, 1, 2) for x in (q, k, v))
    return soft(q @ kt(k) * SCALE, v).permute(0, 2, 3, 1).reshape(B, L, E)


@LAYOUTS.spelling(shapes=dict.fromkeys("qkv", (B, L, H, D)), heads=H)
def scores_with_heads_last(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = torch.einsum("bqhd,bkhd->bqkh", q, k) * SCALE
    return torch.einsum("bqkh,bkhd->bqhd", s.softmax(2), v)


@LAYOUTS.spelling(shapes=dict.fromkeys("qkv", (B, L, H, D)), heads=H)
def keys_before_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("bqhd,bkhd->bhkq", q, k).mul(SCALE).softmax(2)
    return torch.einsum("bhkq,bkhd->bqhd", weights, v)


@LAYOUTS.spelling(heads=H)
def flattened_and_restored(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    s = (q @ kt(k) * SCALE).view(B * H * L, L)
    return (s.softmax(1).view(B * H, L, L) @ v).unflatten(0, (B, H))


@LAYOUTS.spelling(shapes={"image": (B, 3 * E, 4, 6)}, heads=H)
def features_before_a_grid(image: Tensor) -> Tensor:
    q, k, v = image.view(B, 3, H, D, 24).unbind(1)
    weights = torch.einsum("bhdi,bhdj->bhij", q * SCALE, k).softmax(-1)
    return torch.einsum("bhij,bhdj->bhdi", weights, v).reshape(B, E, 4, 6)


@LAYOUTS.spelling(heads=1)
def multiply_and_sum(x: Tensor, memory: Tensor) -> Tensor:
    s = (x.unsqueeze(2) * memory.unsqueeze(1)).sum(-1) * E**-0.5
    return (s.softmax(-1).unsqueeze(-1) * memory.unsqueeze(1)).sum(2)


@LAYOUTS.spelling(shapes={"x": (L, E), "memory": (S, E)}, heads=1)
def tensordot_of_two_sequences(x: Tensor, memory: Tensor) -> Tensor:
    s = torch.tensordot(x, memory, dims=([1], [1])) * E**-0.5
    return torch.tensordot(s.softmax(1), memory, dims=1)


@LAYOUTS.spelling(shapes={"x": (L, E), "memory": (S, E)}, heads=1)
def plain_matrices(x: Tensor, memory: Tensor) -> Tensor:
    return torch.mm(torch.mm(x, memory.t()).div(E**0.5).softmax(1), memory)


@LAYOUTS.spelling(shapes={"image": (B, E, 4, 6)})
def pooled_keys(image: Tensor) -> Tensor:
    k = F.avg_pool2d(image, 2).flatten(2).unflatten(1, (H, D))
    q = image.flatten(2).unflatten(1, (H, D)).transpose(2, 3)
    return soft(q @ k * SCALE, k.transpose(2, 3)).transpose(2, 3).reshape(B, E, 4, 6)
