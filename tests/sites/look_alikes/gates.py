"""Gates: something is multiplied by something, and nothing attends."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.sites.look_alikes.case import LookAlike, weight

IMAGE = ((2, 8, 6, 6),)
PAIR = ((2, 6, 8), (2, 6, 8))


def squeeze_excite(x: Tensor) -> Tensor:
    return x * (x.mean((-2, -1)) @ weight(8, 4)).relu().matmul(weight(4, 8)).sigmoid()[..., None, None]


def squeeze_excite_softmax(x: Tensor) -> Tensor:
    """A softmax over the channels, then a product: no sum over them."""
    return x * (x.mean((-2, -1)) @ weight(8, 8)).softmax(-1)[..., None, None]


def spatial_gate(x: Tensor) -> Tensor:
    both = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
    return x * F.conv2d(both, weight(1, 2, 3, 3), padding=1).sigmoid()


def spatial_softmax_gate(x: Tensor) -> Tensor:
    """A softmax over positions that scales the positions: nothing is summed."""
    a = F.conv2d(x, weight(1, 8, 1, 1)).flatten(2).softmax(-1)
    return x * a.view(2, 1, 6, 6)


def channel_from_covariance(x: Tensor) -> Tensor:
    flat = x.flatten(2)
    covariance = flat @ flat.mT / 36
    return x * (covariance @ weight(8, 1)).sigmoid().unsqueeze(-1)


def two_branches(a: Tensor, b: Tensor) -> Tensor:
    gate = (torch.cat([a, b], -1) @ weight(16, 8)).sigmoid()
    return gate * a + (1 - gate) * b


def two_branches_softmax(a: Tensor, b: Tensor) -> Tensor:
    gates = (torch.cat([a, b], -1) @ weight(16, 2)).softmax(-1)
    return gates[..., :1] * a + gates[..., 1:] * b


def two_branches_stacked(a: Tensor, b: Tensor) -> Tensor:
    gates = (torch.cat([a, b], -1) @ weight(16, 2)).softmax(-1)
    return (gates.unsqueeze(-2) @ torch.stack([a, b], -2)).squeeze(-2)


def gated_unit(a: Tensor, b: Tensor) -> Tensor:
    return F.silu(a @ weight(8, 16)) * (b @ weight(8, 16)) @ weight(16, 8)


def gated_mlp(a: Tensor, b: Tensor) -> Tensor:
    """A gate that mixes positions by a constant matrix."""
    return a * (weight(6, 6) @ b)


def highway(a: Tensor, b: Tensor) -> Tensor:
    t = (a @ weight(8, 8)).sigmoid()
    return t * (a @ weight(8, 8)).relu() + (1 - t) * a


def recurrent_cell(a: Tensor, b: Tensor) -> Tensor:
    z, r = ((a @ weight(8, 16)) + (b @ weight(8, 16))).sigmoid().chunk(2, -1)
    return (1 - z) * b + z * (a @ weight(8, 8) + (r * b) @ weight(8, 8)).tanh()


def film(a: Tensor, b: Tensor) -> Tensor:
    scale, shift = (b.mean(1, keepdim=True) @ weight(8, 16)).chunk(2, -1)
    return a * (1 + scale) + shift


def bilinear_pooling(a: Tensor, b: Tensor) -> Tensor:
    pooled = (a.mT @ b / 6).flatten(1)
    return F.normalize(pooled.sign() * (pooled.abs() + 1e-9).sqrt())


def hadamard_pooling(a: Tensor, b: Tensor) -> Tensor:
    """Low-rank bilinear pooling: a product and a sum, no weights."""
    return ((a @ weight(8, 12)) * (b @ weight(8, 12))).sum(1) @ weight(12, 3)


def attention_of_gates(a: Tensor, b: Tensor) -> Tensor:
    """Gated pooling of instances: softmax over instances of scores that are no product with a query."""
    scores = ((a @ weight(8, 4)).tanh() * (a @ weight(8, 4)).sigmoid()) @ weight(4, 1)
    return (scores.softmax(1) * b).sum(1)


def additive(a: Tensor, b: Tensor) -> Tensor:
    hidden = ((a @ weight(8, 4)).unsqueeze(2) + (b @ weight(8, 4)).unsqueeze(1)).tanh()
    return (hidden @ weight(4, 1)).squeeze(-1).softmax(-1) @ b


def additive_of_numbers(a: Tensor, b: Tensor) -> Tensor:
    """A graph attention layer on a dense graph: one number per query plus one per key."""
    scores = F.leaky_relu((a @ weight(8, 1)) + (b @ weight(8, 1)).mT)
    return scores.softmax(-1) @ b


def by_distance(a: Tensor, b: Tensor) -> Tensor:
    """A kernel smoother: softmax of negative distances."""
    return (-(a.unsqueeze(2) - b.unsqueeze(1)).square().sum(-1)).softmax(-1) @ b


def by_concatenation(a: Tensor, b: Tensor) -> Tensor:
    pairs = torch.cat([a.unsqueeze(2).expand(-1, -1, 6, -1), b.unsqueeze(1).expand(-1, 6, -1, -1)], -1)
    return (pairs @ weight(16, 1)).squeeze(-1).softmax(-1) @ b


def scatter_graph(a: Tensor, b: Tensor, edges: Tensor) -> Tensor:
    """Graph attention on a list of edges: exponentials are summed by scatter."""
    source, target = edges.abs().remainder(6)
    e = (a[:, target] * b[:, source]).sum(-1).exp()
    total = torch.zeros_like(a[..., 0]).index_add(1, target, e)
    return torch.zeros_like(a).index_add(1, target, (e / total[:, target]).unsqueeze(-1) * b[:, source])


ADDITIVE = ("additive-attention",)
ONE_QUERY = ("pooling", "additive-attention", "outlook-attention")

CASES: dict[str, LookAlike] = {
    "squeeze and excite": LookAlike(squeeze_excite, IMAGE),
    "squeeze and excite by softmax": LookAlike(squeeze_excite_softmax, IMAGE, reason=("not followed", "")),
    "spatial gate": LookAlike(spatial_gate, IMAGE),
    "spatial gate by softmax": LookAlike(spatial_softmax_gate, IMAGE, reason=("not followed", "")),
    "gate from a covariance": LookAlike(channel_from_covariance, IMAGE),
    "two branches": LookAlike(two_branches, PAIR),
    "two branches by softmax": LookAlike(two_branches_softmax, PAIR, ONE_QUERY, reason=("",)),
    "two branches, stacked": LookAlike(two_branches_stacked, PAIR, ONE_QUERY, reason=("",)),
    "gated unit": LookAlike(gated_unit, PAIR),
    "gate over positions": LookAlike(gated_mlp, PAIR),
    "highway": LookAlike(highway, PAIR),
    "recurrent cell": LookAlike(recurrent_cell, PAIR),
    "scale and shift": LookAlike(film, PAIR),
    "bilinear pooling": LookAlike(bilinear_pooling, PAIR),
    "low-rank bilinear pooling": LookAlike(hadamard_pooling, PAIR),
    "gated pooling": LookAlike(attention_of_gates, PAIR, ONE_QUERY, reason=("",)),
    "additive": LookAlike(additive, PAIR, ADDITIVE, reason=("no product", "")),
    "additive, of numbers": LookAlike(additive_of_numbers, PAIR, ADDITIVE, reason=("no product", "")),
    "by distance": LookAlike(by_distance, PAIR, (*ADDITIVE, "attention"), reason=("no product", "")),
    "by concatenation": LookAlike(by_concatenation, PAIR, (*ADDITIVE, "pooling"), reason=("no product", "")),
    "on a list of edges": LookAlike(scatter_graph, (*PAIR, (2, 9)), dtypes=((2, torch.int64),)),
}
