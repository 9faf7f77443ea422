"""What is added to the scores: relative positions, slopes, products with positions, pairs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.sites.spellings.entry import SCALE, B, D, E, H, L, Theme, kt, soft

__all__ = ["BIASES"]

BIASES = Theme("biases")
GRID = 4, 3
TOKENS = GRID[0] * GRID[1]
ON_A_GRID = dict.fromkeys("qkv", (B, H, TOKENS, D))


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ kt(k) * SCALE


def distances() -> Tensor:
    """``j - i`` of every query ``i`` and key ``j``."""
    return torch.arange(L)[None] - torch.arange(L)[:, None]


def slopes() -> Tensor:
    return torch.tensor([2.0 ** -(8 * (h + 1) / H) for h in range(H)]).view(H, 1, 1)


def grid_index() -> Tensor:
    """Which entry of a table of relative places each pair of places of a grid reads."""
    h, w = GRID
    place = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")).flatten(1)
    apart = (place[:, :, None] - place[:, None]).permute(1, 2, 0) + torch.tensor([h - 1, w - 1])
    return apart[..., 0] * (2 * w - 1) + apart[..., 1]


class _Table(nn.Module):
    index: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn((2 * GRID[0] - 1) * (2 * GRID[1] - 1), H))
        self.register_buffer("index", grid_index())


@BIASES.spelling(shapes=ON_A_GRID, mask="bias")
class TableOfRelativePlaces(_Table):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        bias = self.table[self.index.view(-1)].view(TOKENS, TOKENS, -1).permute(2, 0, 1).contiguous()
        return soft(scores(q, k) + bias.unsqueeze(0), v)


@BIASES.spelling(shapes={**ON_A_GRID, "bias": (3, TOKENS, TOKENS)})
class TableAndMaskPerWindow(_Table):
    """The batch is pictures times windows; each window has a mask of its own."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        table = self.table[self.index.view(-1)].view(TOKENS, TOKENS, -1).permute(2, 0, 1)
        s = scores(q, k) + table
        s = s.view(B // 3, 3, H, TOKENS, TOKENS) + bias[None, :, None]
        return soft(s.view(B, H, TOKENS, TOKENS), v)


@BIASES.spelling(shapes=ON_A_GRID, mask="bias")
class TablePerHead(_Table):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return soft(scores(q, k) + self.table.T.contiguous()[:, self.index], v)


@BIASES.spelling(shapes=ON_A_GRID)
class TableFromASmallNetwork(_Table):
    """Cosine scores, a learned temperature with a bound, and a bias between 0 and 16."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, H, bias=False))
        self.temperature = nn.Parameter(torch.log(4 * torch.ones(H, 1, 1)))
        self.register_buffer("coordinates", torch.randn(self.table.shape[0], 2))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        s = F.normalize(q, dim=-1) @ kt(F.normalize(k, dim=-1))
        s = s * self.temperature.clamp(max=math.log(100.0)).exp()
        table = self.network(self.coordinates).view(-1, H)
        bias = table[self.index.view(-1)].view(TOKENS, TOKENS, H).permute(2, 0, 1).contiguous()
        return soft(s + 16 * torch.sigmoid(bias).unsqueeze(0), v)


@BIASES.spelling(mask="bias")
class BucketsOfDistances(nn.Module):
    """Near distances have a bucket each, far ones share buckets by their logarithm."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(8, H)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        apart = torch.arange(k.size(-2))[None, :] - torch.arange(q.size(-2))[:, None]
        bucket = (apart > 0).to(torch.long) * 4
        far = torch.abs(apart)
        large = 2 + (torch.log(far.float() / 2) / math.log(16 / 2) * 2).to(torch.long)
        large = torch.min(large, torch.full_like(large, 3))
        bucket = bucket + torch.where(far < 2, far, large)
        bias = self.table(bucket).permute([2, 0, 1]).unsqueeze(0)
        return soft(q @ k.transpose(3, 2) + bias, v)


@BIASES.spelling(mask="bias")
def slopes_times_distances(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft(scores(q, k) - slopes() * distances().abs(), v)


@BIASES.spelling()
def slopes_and_order(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    bias = (slopes() * distances()).masked_fill(distances() > 0, -torch.inf)
    return soft(scores(q, k) + bias, v)


@BIASES.spelling()
def slopes_times_places_of_keys(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """Slopes by the number of kept keys before, given to the product as what it is added to."""
    place = ((keep.float().cumsum(-1) - 1) * keep.float())[:, None]
    alibi = (slopes()[:, 0] * place).reshape(B * H, 1, L)
    q, k = q.reshape(B * H, L, D), k.reshape(B * H, L, D)
    s = alibi.baddbmm(batch1=q, batch2=kt(k), beta=1.0, alpha=SCALE).view(B, H, L, L)
    hidden = (distances() > 0) | ~keep[:, None, None]
    return soft(s.masked_fill(hidden, torch.finfo(torch.float32).min), v)


@BIASES.spelling(shapes=ON_A_GRID)
class RowsAndColumnsApart(nn.Module):
    """Products of queries with vectors of relative rows, and of relative columns."""

    row: Tensor
    column: Tensor

    def __init__(self) -> None:
        super().__init__()
        h, w = GRID
        self.rows, self.columns = (nn.Parameter(torch.randn(2 * n - 1, D)) for n in GRID)
        self.register_buffer("row", torch.arange(h)[:, None] - torch.arange(h)[None] + h - 1)
        self.register_buffer("column", torch.arange(w)[:, None] - torch.arange(w)[None] + w - 1)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        h, w = GRID
        grid = q.reshape(B * H, h, w, D)
        by_row = torch.einsum("bhwc,hkc->bhwk", grid, self.rows[self.row])
        by_column = torch.einsum("bhwc,wkc->bhwk", grid, self.columns[self.column])
        s = scores(q, k).view(B * H, h, w, h, w) + by_row[..., None] + by_column[..., None, :]
        return soft(s.view(B, H, TOKENS, TOKENS), v)


def shifted(x: Tensor) -> Tensor:
    """Turn an axis of relative places into keys: pad, fold, drop the first row."""
    b, h, i, j = x.shape
    x = F.pad(x, (1, 0)).view(b, h, j + 1, i)
    return x[:, :, 1:].view(b, h, i, j)[..., : j // 2 + 1]


@BIASES.spelling(shapes={"x": (B, L, E)})
class RelativePlacesByShift(nn.Module):
    """Queries have one learned bias for the contents of keys and one for their relative places."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.p = (nn.Linear(E, E, bias=False) for _ in range(4))
        self.u, self.w = (nn.Parameter(torch.randn(H, D)) for _ in range(2))
        self.register_buffer("places", torch.randn(1, 2 * L - 1, E))

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).view(B, L, H, D)
        k, v = (p(x).view(B, L, H, D).transpose(1, 2) for p in (self.k, self.v))
        p = self.p(self.places).view(1, -1, H, D).transpose(1, 2)
        contents = (q + self.u).transpose(1, 2) @ kt(k)
        places = shifted((q + self.w).transpose(1, 2) @ kt(p))
        return soft((contents + places) * SCALE, v).transpose(1, 2).reshape(B, L, E)


@BIASES.spelling(shapes={"x": (L, B, E), "memory": (4, B, E)})
class RelativePlacesByShiftWithMemory(nn.Module):
    """Sequence first; einsum; the memory is attended to as well, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.p = nn.Linear(E, E), nn.Linear(E, 2 * E), nn.Linear(E, E)
        self.u, self.w = (nn.Parameter(torch.randn(H, D)) for _ in range(2))
        self.register_buffer("places", torch.randn(L + 4, E))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        q = self.q(x).view(L, B, H, D)
        k, v = (t.view(L + 4, B, H, D) for t in self.kv(torch.cat([memory, x])).chunk(2, -1))
        p = self.p(self.places).view(L + 4, H, D)
        contents = torch.einsum("ibnd,jbnd->ijbn", q + self.u, k)
        places = torch.einsum("ibnd,jnd->ijbn", q + self.w, p)
        padded = torch.cat([torch.zeros(L, 1, B, H), places], 1).view(L + 5, L, B, H)
        s = (contents + padded[1:].view_as(places)) * SCALE
        hidden = torch.triu(torch.ones(L, L + 4), diagonal=5).bool()[:, :, None, None]
        weights = s.masked_fill(hidden, -torch.inf).softmax(1)
        return torch.einsum("ijbn,jbnd->ibnd", weights, v).reshape(L, B, E)


@BIASES.spelling()
class SkewedProducts(nn.Module):
    """Products with relative places before the query, skewed by padding and folding."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(H, L, D))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        s = F.pad(q @ kt(self.places), (1, 0)).reshape(B, H, L + 1, L)[:, :, 1:]
        hidden = torch.ones(L, L).triu(1).bool()
        return soft(((q @ kt(k) + s) * SCALE).masked_fill(hidden, -torch.inf), v)


@BIASES.spelling()
class ProductsWithRelativePlaces(nn.Module):
    """One vector per distance, clipped; gathered for every pair before the product."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Embedding(7, D)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        apart = self.places(distances().clamp(-3, 3) + 3)
        return soft((q @ kt(k) + torch.einsum("bhld,lrd->bhlr", q, apart)) / math.sqrt(D), v)


@BIASES.spelling()
class ProductsWithRelativePlacesOfBoth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Embedding(2 * L - 1, D)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        apart = self.places(distances() + L - 1)
        of_q = torch.einsum("bhld,lrd->bhlr", q, apart)
        of_k = torch.einsum("bhrd,lrd->bhlr", k, apart)
        return soft((q @ kt(k) + of_q + of_k) / math.sqrt(D), v)


@BIASES.spelling(scale=(3 * D) ** -0.5)
class ContentToPlaceAndBack(nn.Module):
    """Products of contents with places both ways, gathered by distance."""

    def __init__(self) -> None:
        super().__init__()
        self.of_k, self.of_q = (nn.Parameter(torch.randn(H, 2 * L, D)) for _ in range(2))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        at = (distances() + L).expand(B, H, L, L)
        there = torch.gather(q @ kt(self.of_k), -1, at)
        back = kt(torch.gather(k @ kt(self.of_q), -1, at))
        return soft((q @ kt(k) + there + back) / math.sqrt(3 * D), v)


@BIASES.spelling(scale=SCALE)
class PlacesInProductsOfTheirOwn(nn.Module):
    """Contents with contents and places with places: two products, added."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = (nn.Parameter(torch.randn(H, L, D)) for _ in range(2))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return soft((q @ kt(k) + self.q @ kt(self.k)) * SCALE, v)


@BIASES.spelling(shapes={"pairs": (B, L, L, 5)}, mask="bias")
class BiasOfPairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Linear(5, H, bias=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, pairs: Tensor, keep: Tensor) -> Tensor:
        bias = self.bias(pairs).permute(0, 3, 1, 2)
        return soft(scores(q, k) + bias + (keep.float()[:, None, None] - 1) * 1e9, v)


@BIASES.spelling(mask="bias")
class LearnedForEveryPair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(1, H, L, L))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return soft(torch.add(scores(q, k), self.bias), v)


@BIASES.spelling(shapes={"sizes": (B, L)})
def logarithm_of_counts(q: Tensor, k: Tensor, v: Tensor, sizes: Tensor) -> Tensor:
    return soft(scores(q, k) + (sizes.square() + 1).log()[:, None, None], v)


@BIASES.spelling(mask="bias")
def logarithm_of_distances(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft(scores(q, k) - 0.7 * torch.log1p(0.3 * distances().abs()), v)


@BIASES.spelling(mask="bias")
def square_of_distances(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft(scores(q, k) - distances().float().pow(2) / (2 * 2.0**2), v)


@BIASES.spelling(shapes={"q": (B, H, L, D)})
class RelativeLogitsByReshape(nn.Module):
    """Relative places of one axis become keys by two paddings and two reshapes."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(2 * L - 1, D))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        x = (q @ self.places.T).reshape(B * H, L, 2 * L - 1)
        x = F.pad(x, (0, 1)).flatten(1)
        x = F.pad(x, (0, L - 1)).reshape(B * H, L + 1, 2 * L - 1)
        return soft((q @ kt(k) + x[:, :L, L - 1 :].view(B, H, L, L)) * SCALE, v)
