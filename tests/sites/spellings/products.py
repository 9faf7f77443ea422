"""Products of three tensors and more: the attention itself is between two of their factors."""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor, nn

from tests.sites.spellings.entry import SCALE, B, D, E, H, L, S, Theme, kt

__all__ = ["PRODUCTS"]

PRODUCTS = Theme("products")
HEADS = {"x": (B, L, 11), "w": (H, 11, D), "out": (H, D, 13)}
"""Widths of the model that are no number of features times heads."""


def weights(q: Tensor, k: Tensor) -> Tensor:
    return (q @ kt(k) * SCALE).softmax(-1)


def _with_the_output_matrix(order: tuple[int, ...]) -> None:
    axes = [("bhij", "bhjd", "hde")[at] for at in order]
    names = [("weights", "values", "matrix")[at] for at in order]

    def spelled(q: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> Tensor:
        factors = weights(q, keys), values, out
        return torch.einsum(f"{','.join(axes)}->bie", *(factors[at] for at in order))

    spelled.__name__ = "_times_".join(names)
    PRODUCTS.spelling(shapes=HEADS, heads=H, scale=SCALE)(spelled)


for _order in permutations(range(3)):
    _with_the_output_matrix(_order)


@PRODUCTS.spelling(shapes={"q": (B, L, D), "k": (B, L, D), "v": (B, L, D), "out": (D, E)})
def one_head_with_an_ellipsis(q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> Tensor:
    return torch.einsum("...ij,...jd,de->...ie", weights(q, k), v, out)


@PRODUCTS.spelling(shapes=HEADS, heads=H, kv_heads=H)
def values_are_projected_in_the_product(q: Tensor, k: Tensor, x: Tensor, w: Tensor) -> Tensor:
    return torch.einsum("bhij,bje,hed->bihd", weights(q, k), x, w)


@PRODUCTS.spelling(shapes=HEADS, heads=H, kv_heads=H)
class ProjectedBothWays(nn.Module):
    """Four factors: the tokens, the matrix of the values, the weights, the matrix of the output."""

    def __init__(self) -> None:
        super().__init__()
        self.v, self.out = (nn.Parameter(torch.randn(n) / 4) for n in ((H, 11, D), (H, D, 11)))

    def forward(self, q: Tensor, k: Tensor, x: Tensor) -> Tensor:
        return torch.einsum("bje,hed,hdf,bhij->bif", x, self.v, self.out, weights(q, k))


@PRODUCTS.spelling(shapes={"gate": (B, L)}, heads=H)
def values_are_gated_in_the_product(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
    return torch.einsum("bhij,bj,bhjd->bihd", weights(q, k), gate, v)


@PRODUCTS.spelling(shapes={"gate": (B, H, L)}, heads=H)
def the_output_is_gated_in_the_product(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
    return torch.einsum("bhi,bhij,bhjd->bhid", gate, weights(q, k), v)


@PRODUCTS.spelling(shapes={"mix": (H, H)}, heads=H, traits=("head-mixing",))
def heads_are_mixed_in_the_product(q: Tensor, k: Tensor, v: Tensor, mix: Tensor) -> Tensor:
    return torch.einsum("bhij,hg,bgjd->bgid", weights(q, k), mix, v)


@PRODUCTS.spelling(heads=H, scale=1.0)
def normalised_in_the_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = (q @ kt(k)).exp()
    return torch.einsum("bhij,bhjd,bhi->bhid", e, v, 1 / e.sum(-1))


@PRODUCTS.spelling(heads=H)
def normalised_by_a_product_that_sums_nothing(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = (q @ kt(k) * SCALE).exp()
    return torch.einsum("bhid,bhi->bihd", e @ v, 1 / e.sum(-1))


@PRODUCTS.spelling(shapes={"w": (E, 11), "keys": (B, S, 11), "values": (B, S, E)})
def scores_through_a_matrix(x: Tensor, w: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return torch.einsum("bid,de,bje->bij", x * SCALE, w, keys).softmax(-1) @ values


@PRODUCTS.spelling(shapes={"w": (H, 11, D), "x": (B, L, 11)}, heads=H)
def queries_are_projected_in_the_product(x: Tensor, w: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bie,hed,bhjd->bhij", x, w, k).softmax(-1) @ v


@PRODUCTS.spelling(shapes={"metric": (H, D)}, heads=H)
def scores_with_a_weight_per_feature(q: Tensor, k: Tensor, v: Tensor, metric: Tensor) -> Tensor:
    return torch.einsum("bhid,bhjd,hd->bhij", q, k, metric).softmax(-1) @ v


@PRODUCTS.spelling(shapes={"factor": (B, L, L)}, heads=H, traits=("score-function",))
def scores_with_a_factor_per_pair(q: Tensor, k: Tensor, v: Tensor, factor: Tensor) -> Tensor:
    return torch.einsum("bhid,bij,bhjd->bhij", q, factor, k).softmax(-1) @ v


@PRODUCTS.spelling(shapes={**HEADS, "square": (H, D, D)}, heads=H, sites=2)
def two_layers(q: Tensor, k: Tensor, v: Tensor, square: Tensor, out: Tensor) -> Tensor:
    once = torch.einsum("bhij,bhjd,hde->bhie", weights(q, k), v, square)
    return torch.einsum("hde,bhij,bhjd->bie", out, weights(once, k), v)


@PRODUCTS.spelling(shapes={"q": (B, H, 1, D), "k": (B, H, 1, D), "v": (B, H, 1, D), **HEADS}, heads=H)
def one_token(q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> Tensor:
    return torch.einsum("bhij,bhjd,hde->bie", weights(q, k), v, out)


@PRODUCTS.spelling(shapes=HEADS, heads=H, dtype=torch.float64)
def in_double_precision(q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> Tensor:
    return torch.einsum("bhij,bhjd,hde->bie", (q @ kt(k)).softmax(-1), v, out)
