"""Products after products, without weights of any kind: layers, transforms, scans."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.sites.look_alikes.case import LookAlike, kt, weight

TOKENS = ((2, 6, 8),)
POSES = ((2, 4, 4), (2, 4, 4), (2, 4, 4))


def two_layers(x: Tensor) -> Tensor:
    return x @ weight(8, 5) @ weight(5, 8)


def perceptron(x: Tensor) -> Tensor:
    return (x @ weight(8, 32)).relu() @ weight(32, 8)


def perceptron_sigmoid(x: Tensor) -> Tensor:
    return (x @ weight(8, 32)).sigmoid() @ weight(32, 8)


def perceptron_exp(x: Tensor) -> Tensor:
    """Exponentials of products with a constant, without a denominator."""
    return (x @ weight(8, 32)).exp() @ weight(32, 8)


def folded_weights(x: Tensor) -> Tensor:
    return x @ (weight(8, 2) @ weight(2, 8))


def adapter(x: Tensor) -> Tensor:
    return x @ weight(8, 8) + 0.5 * (x @ weight(8, 2)) @ weight(2, 8)


def mixer(x: Tensor) -> Tensor:
    """Tokens are mixed by constants, then channels."""
    x = x + kt((kt(x) @ weight(6, 12)).relu() @ weight(12, 6))
    return x + (x @ weight(8, 16)).relu() @ weight(16, 8)


def transforms(x: Tensor) -> Tensor:
    """A two-dimensional transform by two constant matrices, filtered and undone."""
    a, b = weight(6, 6), weight(8, 8)
    return a.T @ ((a @ x @ b) * weight(6, 8)) @ b.T


def adjacency(a: Tensor, x: Tensor) -> Tensor:
    """A graph convolution: the matrix is an input, not a product."""
    return (a @ x @ weight(8, 8)).relu()


def adjacency_twice(a: Tensor, x: Tensor) -> Tensor:
    return a @ (a @ x)


def poses(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """A chain of rigid transforms."""
    return a @ b @ c


def kalman(f: Tensor, p: Tensor, q: Tensor) -> Tensor:
    return f @ p @ f.mT + q


def mahalanobis(x: Tensor) -> Tensor:
    d = x - x.mean(1, keepdim=True)
    return torch.einsum("btd,de,bte->bt", d, weight(8, 8), d)


def bilinear_form(a: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("bid,odf,bjf->boij", a, weight(3, 8, 8), b)


def least_squares(x: Tensor, y: Tensor) -> Tensor:
    """Normal equations and a prediction."""
    inverse: Tensor = torch.linalg.inv(x.mT @ x + torch.eye(8))
    return x @ inverse @ x.mT @ y


def projection(x: Tensor) -> Tensor:
    """Onto the span of constants."""
    basis = weight(8, 3)
    return x - (x @ basis) @ basis.T


def scan(x: Tensor) -> Tensor:
    """A diagonal state space, step by step."""
    a, b, c = weight(16).sigmoid(), weight(8, 16), weight(16, 8)
    h, out = torch.zeros(2, 16), []
    for t in range(6):
        h = a * h + x[:, t] @ b
        out.append(h @ c)
    return torch.stack(out, 1)


def scan_as_convolution(x: Tensor) -> Tensor:
    """The same by its kernel, which is a constant matrix over positions."""
    lag = torch.arange(6.0).unsqueeze(1) - torch.arange(6.0)
    return torch.where(lag >= 0, 0.8**lag, 0.0) @ x @ weight(8, 8)


def selective_scan(x: Tensor) -> Tensor:
    """A selective state space: the matrices in and out depend on the token."""
    b, c, step = x @ weight(8, 4), x @ weight(8, 4), (x @ weight(8, 1)).sigmoid()
    h, out = torch.zeros(2, 8, 4), []
    for t in range(6):
        h = (1 - step[:, t]).unsqueeze(-1) * h + x[:, t].unsqueeze(-1) * b[:, t].unsqueeze(1)
        out.append((h @ c[:, t].unsqueeze(-1)).squeeze(-1))
    return torch.stack(out, 1)


def chunked_scan(x: Tensor) -> Tensor:
    """Its dual form: a decayed product of two projections, then the values. Linear attention with a mask."""
    b, c = x @ weight(8, 4), x @ weight(8, 4)
    decay = (x @ weight(8, 1)).squeeze(-1).sigmoid().log().cumsum(-1)
    mask = torch.tril((decay.unsqueeze(-1) - decay.unsqueeze(-2)).exp())
    return ((c @ kt(b)) * mask) @ x


def hyper_network(x: Tensor, z: Tensor) -> Tensor:
    """A layer whose weights come from another input."""
    w1, w2 = (z @ weight(8, 64)).view(2, 8, 8), (z @ weight(8, 64)).view(2, 8, 8)
    return (x @ w1).relu() @ w2


def embedding_bag(x: Tensor) -> Tensor:
    """A one-hot product twice."""
    ids = x.argmax(-1)
    hot = torch.nn.functional.one_hot(ids, 8).to(x.dtype)
    return hot @ weight(8, 8) @ weight(8, 5)


def softmax_between_layers(x: Tensor) -> Tensor:
    """A softmax used as the function of a perceptron, over its hidden units."""
    return (x @ weight(8, 32)).softmax(-1) @ weight(32, 8)


def softmax_then_other_axis(x: Tensor) -> Tensor:
    """A softmax over the features, then a product over the tokens."""
    return weight(6, 6) @ (x @ weight(8, 5)).softmax(-1)


def mean_and_spread(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() @ weight(8, 8)


def share_of_the_sum(x: Tensor) -> Tensor:
    """A quotient by a sum that then meets a layer: the numerators are no function of products."""
    positive = x.abs()
    return positive / positive.sum(-1, keepdim=True) @ weight(8, 5)


def power_iteration(x: Tensor) -> Tensor:
    u = torch.ones(2, 8, 1)
    for _ in range(2):
        u = x.mT @ (x @ u)
        u = u / u.norm(dim=1, keepdim=True)
    return u


LINEAR = ("linear-attention", "unnormalised-attention", "channel-attention")

CASES: dict[str, LookAlike] = {
    "two layers": LookAlike(two_layers, TOKENS),
    "perceptron": LookAlike(perceptron, TOKENS),
    "perceptron, sigmoid": LookAlike(perceptron_sigmoid, TOKENS),
    "perceptron, exponential": LookAlike(perceptron_exp, TOKENS),
    "folded weights": LookAlike(folded_weights, TOKENS),
    "adapter": LookAlike(adapter, TOKENS),
    "mixer": LookAlike(mixer, TOKENS),
    "transforms": LookAlike(transforms, TOKENS),
    "graph convolution": LookAlike(adjacency, ((2, 6, 6), (2, 6, 8))),
    "graph convolution, two hops": LookAlike(adjacency_twice, ((2, 6, 6), (2, 6, 8)), LINEAR),
    "poses": LookAlike(poses, POSES, LINEAR),
    "Kalman filter": LookAlike(kalman, POSES, LINEAR),
    "Mahalanobis distance": LookAlike(mahalanobis, TOKENS),
    "bilinear form": LookAlike(bilinear_form, ((2, 6, 8), (2, 7, 8))),
    "least squares": LookAlike(least_squares, ((2, 9, 8), (2, 9, 3)), LINEAR),
    "projection onto constants": LookAlike(projection, TOKENS),
    "scan": LookAlike(scan, TOKENS),
    "scan as a convolution": LookAlike(scan_as_convolution, TOKENS),
    "selective scan": LookAlike(selective_scan, TOKENS, LINEAR),
    "selective scan, dual form": LookAlike(chunked_scan, TOKENS, LINEAR, reason=("",)),
    "layers from another input": LookAlike(hyper_network, ((2, 6, 8), (2, 8)), LINEAR),
    "one-hot products": LookAlike(embedding_bag, TOKENS),
    "softmax between layers": LookAlike(
        softmax_between_layers, TOKENS, ("attention",), reason=("",), constant=("k", "v")
    ),
    "softmax, then another axis": LookAlike(softmax_then_other_axis, TOKENS, reason=("another axis", "")),
    "normalised by spread": LookAlike(mean_and_spread, TOKENS),
    "share of the sum": LookAlike(share_of_the_sum, TOKENS, ("outlook-attention",)),
    "power iteration": LookAlike(power_iteration, TOKENS, LINEAR),
}
"""Chains of three factors that all depend on inputs are linear attention by their algebra, and may be
called so; a factor that is a weight of the model makes them layers."""
