"""Where queries, keys and values come from: projections of one stream or of several, packed or apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.sites.spellings.entry import SCALE, B, D, E, G, H, L, S, Theme, kt, soft

__all__ = ["PROJECTIONS"]

PROJECTIONS = Theme("projections")


def heads(x: Tensor, count: int = H) -> Tensor:
    """``[batch, length, count · D]`` to ``[batch, count, length, D]``."""
    return x.view(x.shape[0], x.shape[1], count, -1).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


@PROJECTIONS.spelling(heads=H, scale=SCALE)
class SeparateProjections(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(E, E) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = heads(self.q(x)), heads(self.k(x)), heads(self.v(x))
        return self.out(merged(soft(q @ kt(k) * SCALE, v)))


class Packed(nn.Module):
    """One projection to queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(E, 3 * E)
        self.out = nn.Linear(E, E)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        return self.out(merged(soft(q @ kt(k) * SCALE, v)))


@PROJECTIONS.spelling(heads=H)
class PackedInChunks(Packed):
    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(heads(t) for t in self.qkv(x).chunk(3, -1))


@PROJECTIONS.spelling(heads=H)
class PackedAndUnbound(Packed):
    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.qkv(x).reshape(B, L, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)


@PROJECTIONS.spelling(heads=H)
class PackedAndIndexed(Packed):
    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        qkv = self.qkv(x).view(B, L, 3, H, D).permute(2, 0, 3, 1, 4)
        return qkv[0], qkv[1], qkv[2]


@PROJECTIONS.spelling(heads=H)
class PackedHeadByHead(Packed):
    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.qkv(x).view(B, L, H, 3 * D).transpose(1, 2).chunk(3, -1)


@PROJECTIONS.spelling(heads=H)
class PackedFeatureByFeature(Packed):
    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        qkv = self.qkv(x).view(B, L, D, 3, H).permute(3, 0, 4, 1, 2)
        return qkv.unbind(0)


@PROJECTIONS.spelling(heads=H)
class PackedFeatureByFeatureMultipliedAndAdded(Packed):
    """The values lie with gaps in the projection, and no operator but the projection has them by itself."""

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).view(B, L, D, 3, H).transpose(2, 4)
        q, k, v = (qkv[:, :, :, n].transpose(1, 2) for n in range(3))
        weights = (q @ kt(k) * SCALE).softmax(-1)
        return self.out(merged((weights[..., None] * v[:, :, None]).sum(3)))


@PROJECTIONS.spelling(heads=H)
class PackedIntoSlices(Packed):
    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        qkv = self.qkv(x)
        return heads(qkv[..., :E]), heads(qkv[..., E : 2 * E]), heads(qkv[..., 2 * E :])


@PROJECTIONS.spelling(heads=H, kv_heads=G)
class PackedInUnequalParts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(E, E + 2 * G * D)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).split([E, G * D, G * D], -1)
        q, k, v = heads(q), heads(k, G), heads(v, G)
        k, v = (t.repeat_interleave(H // G, 1) for t in (k, v))
        return merged(soft(q @ kt(k) * SCALE, v))


@PROJECTIONS.spelling(heads=H, kv_heads=G)
class PackedInGroupsOfQueries(nn.Module):
    """Every group holds its queries, then its key and its value."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(E, G * (H // G + 2) * D)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).view(B, L, G, H // G + 2, D)
        q = qkv[:, :, :, :-2].reshape(B, L, H, D).transpose(1, 2)
        k, v = (
            t.expand(B, L, G, H // G, D).reshape(B, L, H, D).transpose(1, 2)
            for t in (qkv[:, :, :, [-2]], qkv[:, :, :, [-1]])
        )
        return merged(soft(q @ kt(k) * SCALE, v))


@PROJECTIONS.spelling(heads=H)
class PackedByAddmm(nn.Module):
    """A linear layer whose weight is stored transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(E, 3 * E) * 0.1)
        self.bias = nn.Parameter(torch.randn(3 * E))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, E), self.weight).view(B, L, 3 * E)
        q, k, v = map(heads, flat.split(E, 2))
        return merged(soft(q @ kt(k) * SCALE, v))


@PROJECTIONS.spelling(heads=H)
class QueriesApartAndKeysWithValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(E, E), nn.Linear(E, 2 * E)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        k, v = self.kv(memory).view(B, S, 2, H, D).permute(2, 0, 3, 1, 4)
        return merged(soft(heads(self.q(x)) @ kt(k) * SCALE, v))


@PROJECTIONS.spelling(heads=H, shapes={"positions": (1, S, E)})
class KeysAndValuesOfDifferentStreams(nn.Module):
    """Keys know where they are, values do not."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(E, E) for _ in range(3))

    def forward(self, x: Tensor, memory: Tensor, positions: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(memory + positions), self.v(memory)
        return merged(soft(heads(q) @ kt(heads(k)) * SCALE, heads(v)))


@PROJECTIONS.spelling(heads=H)
class OneProjectionForQueriesAndKeys(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qk, self.v = nn.Linear(E, E), nn.Linear(E, E)

    def forward(self, x: Tensor) -> Tensor:
        qk, v = heads(self.qk(x)), heads(self.v(x))
        return merged(soft(qk @ kt(qk) * SCALE, v))


@PROJECTIONS.spelling(heads=1)
class NoProjections(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return soft(x @ kt(x), x)


@PROJECTIONS.spelling(heads=1)
class PointwiseConvolutions(nn.Module):
    """Attention between the places of a picture: features before places."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Conv2d(E, E, 1) for _ in range(4))

    def forward(self, image: Tensor) -> Tensor:
        b, c, h, w = image.shape
        q = self.q(image).reshape(b, c, h * w).permute(0, 2, 1)
        k = self.k(image).reshape(b, c, h * w)
        weights = torch.softmax(torch.bmm(q, k) * E**-0.5, 2).permute(0, 2, 1)
        return image + self.out(torch.bmm(self.v(image).reshape(b, c, h * w), weights).reshape(b, c, h, w))


@PROJECTIONS.spelling(heads=H)
class ConvolutionAlongTheSequence(nn.Module):
    """Features before places; the root of the scale on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Conv1d(E, 3 * E, 1)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x.transpose(1, 2)).reshape(B * H, 3 * D, L)
        q, k, v = qkv.split(D, 1)
        weights = torch.einsum("bct,bcs->bts", q * SCALE**0.5, k * SCALE**0.5).softmax(-1)
        return torch.einsum("bts,bcs->bct", weights, v).reshape(B, E, L)


@PROJECTIONS.spelling(heads=H)
class DepthwiseConvolutionFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(E, E, 3, padding=1, groups=E)
        self.qkv = nn.Conv2d(E, 3 * E, 1, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        q, k, v = self.qkv(self.mix(image)).flatten(2).view(B, 3 * H, D, -1).transpose(2, 3).chunk(3, 1)
        return soft(q @ kt(k) * SCALE, v).transpose(2, 3).reshape(image.shape)


@PROJECTIONS.spelling(heads=H)
class FewerKeysByStridedConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(E, E, 2, stride=2)
        self.norm = nn.LayerNorm(E)
        self.q, self.kv = nn.Linear(E, E), nn.Linear(E, 2 * E)

    def forward(self, image: Tensor) -> Tensor:
        x = image.flatten(2).transpose(1, 2)
        few = self.norm(self.reduce(image).flatten(2).transpose(1, 2))
        k, v = self.kv(few).reshape(B, -1, 2, H, D).permute(2, 0, 3, 1, 4)
        return merged(soft(heads(self.q(x)) @ kt(k) * SCALE, v))


@PROJECTIONS.spelling(heads=H)
class FewerKeysByProjectionOfPlaces(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(E, E, bias=False) for _ in range(3))
        self.shorter = nn.Parameter(torch.randn(S, 5) * 0.3)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        k, v = (torch.einsum("bnd,nk->bkd", p(memory), self.shorter) for p in (self.k, self.v))
        return merged(soft(heads(self.q(x)) @ kt(heads(k)) * SCALE, heads(v)))


@PROJECTIONS.spelling(heads=H)
class ProjectionByEinsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Parameter(torch.randn(E, H, D) * 0.2) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("ble,ehd->blhd", x, w) for w in (self.q, self.k, self.v))
        s = torch.einsum("bqhd,bkhd->bhqk", q * SCALE, k)
        o = torch.einsum("bhqk,bkhd->bqhd", s.softmax(-1), v)
        return torch.einsum("bqhd,ehd->bqe", o, self.out)


@PROJECTIONS.spelling(heads=H)
class ProjectionByTensordot(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, E, H, D) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.tensordot(x, self.weight[i], dims=1).transpose(1, 2) for i in range(3))
        return soft(q @ kt(k) * SCALE, v)


@PROJECTIONS.spelling(heads=H)
class OneMatrixPerHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.randn(H, E, D) * 0.2) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (x[:, None] @ w for w in (self.q, self.k, self.v))
        return soft(q @ kt(k) * SCALE, v)


@PROJECTIONS.spelling(heads=H)
class OneMatrixForQueriesAndKeys(nn.Module):
    """The product of the two projections is learned itself."""

    def __init__(self) -> None:
        super().__init__()
        self.qk, self.v = (nn.Parameter(torch.randn(H, E, E) * 0.1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        s = torch.einsum("bhif,bjf->bhij", torch.einsum("bie,hef->bhif", x, self.qk), x)
        return torch.einsum("bhij,bhjf->bihf", s.softmax(-1), torch.einsum("bje,hef->bhjf", x, self.v))


@PROJECTIONS.spelling(heads=H)
class CopiesAndCasts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(E, E) for _ in range(3))
        self.same = nn.Sequential(nn.Identity(), nn.Dropout(0.1), nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.same(heads(p(x))).contiguous().clone() for p in (self.q, self.k, self.v))
        s = self.same((q.double() @ kt(k).double()).float() * SCALE)
        return merged(self.same(s.softmax(-1)).type_as(v) @ v.contiguous())


@PROJECTIONS.spelling(heads=H, kv_heads=H, scale=(D + 4) ** -0.5)
class CompressedKeysAndValues(nn.Module):
    """Keys and values of a low-rank latent; a part of the key, with the positions, is shared by all heads."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(E, H * (D + 4), bias=False)
        self.down, self.norm = nn.Linear(E, 12 + 4, bias=False), nn.LayerNorm(12)
        self.up = nn.Linear(12, H * (D + 5), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q = heads(self.q(x))
        latent, shared = self.down(x).split([12, 4], -1)
        k, v = heads(self.up(self.norm(latent))).split([D, 5], -1)
        k = torch.cat([k, shared.view(B, 1, L, 4).expand(B, H, L, 4)], -1)
        return merged(soft(q @ kt(k) * (D + 4) ** -0.5, v))


@PROJECTIONS.spelling(heads=H, kv_heads=1)
class AbsorbedCompression(nn.Module):
    """The latent itself is key and value of all heads; what made keys of it has moved into the queries."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.down = nn.Linear(E, E), nn.Linear(E, 12)
        self.k, self.v = (nn.Parameter(torch.randn(H, D, 12) * 0.3) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        latent = self.down(x)
        q = torch.einsum("bqhd,hdc->bqhc", self.q(x).view(B, L, H, D), self.k)
        s = torch.einsum("bqhc,bkc->bqhk", q, latent) * SCALE
        o = torch.einsum("bqhk,bkc->bqhc", s.softmax(-1), latent)
        return torch.einsum("bqhc,hdc->bqhd", o, self.v).flatten(2)


@PROJECTIONS.spelling(mask="none")
class HeadsStackedIntoTheBatch(nn.Module):
    """Heads are split off and laid one after another along the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(E, E) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.cat(p(x).split(D, 2), 0) for p in (self.q, self.k, self.v))
        return torch.cat(soft(q @ kt(k) * SCALE, v).split(B, 0), 2)


@PROJECTIONS.spelling(heads=H, shapes={"values": (B, H, S, 5)})
def values_of_another_width(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return soft(q @ kt(keys) * SCALE, values)


@PROJECTIONS.spelling(heads=H)
class FunctionalLinear(nn.Module):
    """One weight, cut into three before it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3 * E, E) * 0.2), nn.Parameter(torch.randn(3 * E))

    def forward(self, x: Tensor) -> Tensor:
        weights, biases = self.weight.chunk(3), self.bias.chunk(3)
        q, k, v = (heads(F.linear(x, w, b)) for w, b in zip(weights, biases, strict=True))
        return merged(soft(q @ kt(k) * SCALE, v))
