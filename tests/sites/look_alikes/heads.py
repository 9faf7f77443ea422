"""Classifiers, routers and mixtures: a softmax of products with weights of the model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.sites.look_alikes.case import LookAlike, kt, weight

TOKENS = ((2, 6, 8),)
KEYED = ("pooling", "positional-attention", "outlook-attention", "additive-attention")
"""What a mixture of experts may be called: one query per token and, for each, its own values."""

UNSUMMED = ("not followed", "no sum", "no values", "")


def class_head(x: Tensor) -> Tensor:
    return (x @ weight(8, 10)).softmax(-1)


def two_layer_head(x: Tensor) -> Tensor:
    return ((x @ weight(8, 10)).softmax(-1)) @ weight(10, 5)


def expected_class(x: Tensor) -> Tensor:
    """Distribution focal loss: the expectation of a bin number."""
    return (x @ weight(8, 16)).softmax(-1) @ torch.arange(16.0)


def expected_bins(x: Tensor) -> Tensor:
    """The same for four sides of a box, as a 1x1 convolution."""
    sides = (x @ weight(8, 64)).reshape(2, 6, 4, 16).softmax(-1)
    return F.conv2d(sides.permute(0, 3, 1, 2), torch.arange(16.0).view(1, 16, 1, 1)).squeeze(1)


def dense_experts(x: Tensor) -> Tensor:
    gates = (x @ weight(8, 4)).softmax(-1)
    experts = torch.einsum("btd,edf->btef", x, weight(4, 8, 8)).relu()
    return torch.einsum("bte,btef->btf", gates, experts)


def linear_experts(x: Tensor) -> Tensor:
    """No function inside the experts: gates, tokens and weights in one product."""
    gates = (x @ weight(8, 4)).softmax(-1)
    return torch.einsum("bte,btd,edf->btf", gates, x, weight(4, 8, 8))


def top_experts(x: Tensor) -> Tensor:
    gates = (x @ weight(8, 4)).softmax(-1)
    best, chosen = gates.topk(2, -1)
    experts = torch.einsum("btd,edf->btef", x, weight(4, 8, 8)).relu()
    picked = experts.gather(2, chosen.unsqueeze(-1).expand(-1, -1, -1, 8))
    return (best.unsqueeze(-1) * picked).sum(2)


def top_experts_renormalised(x: Tensor) -> Tensor:
    best, chosen = (x @ weight(8, 4)).topk(2, -1)
    experts = torch.einsum("btd,edf->btef", x, weight(4, 8, 8)).relu()
    picked = experts.gather(2, chosen.unsqueeze(-1).expand(-1, -1, -1, 8))
    return torch.einsum("btk,btkf->btf", best.softmax(-1), picked)


def experts_by_loop(x: Tensor) -> Tensor:
    gates, total = (x @ weight(8, 4)).softmax(-1), torch.zeros_like(x)
    for e, w in enumerate(weight(4, 8, 8)):
        total = total + gates[..., e : e + 1] * (x @ w)
    return total


def soft_experts(x: Tensor) -> Tensor:
    """Soft MoE: slots gather tokens, experts work on slots, tokens gather slots."""
    logits = x @ weight(8, 4)
    slots = kt(logits.softmax(1)) @ x
    worked = torch.einsum("bsd,sde->bse", slots, weight(4, 8, 8))
    return logits.softmax(2) @ worked


def mixture_of_softmaxes(x: Tensor) -> Tensor:
    prior = (x @ weight(8, 3)).softmax(-1)
    hidden = (x @ weight(8, 24)).reshape(2, 6, 3, 8).tanh()
    return torch.einsum("btk,btkv->btv", prior, (hidden @ weight(8, 20)).softmax(-1))


def mixture_of_gaussians(x: Tensor) -> Tensor:
    pi = (x @ weight(8, 5)).softmax(-1)
    mean = (x @ weight(8, 15)).reshape(2, 6, 5, 3)
    return (pi.unsqueeze(-1) * mean).sum(-2)


def contrastive(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    logits = 14.3 * image @ text.T
    return logits.softmax(-1), logits.T.softmax(-1)


def contrastive_loss(image: Tensor, text: Tensor) -> Tensor:
    logits = image @ text.T
    return F.cross_entropy(logits, torch.arange(6)) + F.cross_entropy(logits.T, torch.arange(6))


def zero_shot(image: Tensor, text: Tensor) -> Tensor:
    """Class probabilities, then a linear layer on them."""
    return (image @ text.T).softmax(-1) @ weight(6, 3)


def time_classes(x: Tensor) -> Tensor:
    """A recogniser of text or speech: class scores per step, no values."""
    return (x @ weight(8, 30)).log_softmax(-1)


def marginal_of_classes(x: Tensor) -> Tensor:
    return (x @ weight(8, 30)).softmax(-1).mean(1)


def multi_class_pooling(x: Tensor) -> Tensor:
    """Per class a softmax over the instances, and the mean of its scores: not the values' product."""
    scores = x @ weight(8, 3)
    return (scores.softmax(1) * scores).sum(1)


def two_streams(x: Tensor) -> Tensor:
    """Weakly supervised detection: softmax over classes times softmax over regions, summed over regions."""
    return ((x @ weight(8, 5)).softmax(-1) * (x @ weight(8, 5)).softmax(1)).sum(1)


def codebook(x: Tensor) -> Tensor:
    return weight(16, 8)[torch.cdist(x, weight(16, 8).expand(2, -1, -1)).argmin(-1)]


def codebook_by_products(x: Tensor) -> Tensor:
    book = weight(16, 8)
    distance = x.square().sum(-1, keepdim=True) - 2 * x @ book.T + book.square().sum(-1)
    return F.one_hot(distance.argmin(-1), 16).to(x.dtype) @ book


def soft_codebook(x: Tensor) -> Tensor:
    """Attention to constant keys with a bias per key; the squares of the queries cancel."""
    book = weight(16, 8)
    distance = x.square().sum(-1, keepdim=True) - 2 * x @ book.T + book.square().sum(-1)
    return (-distance).softmax(-1) @ book


def soft_codebook_by_distance(x: Tensor) -> Tensor:
    book = weight(16, 8)
    return (-torch.cdist(x, book.expand(2, -1, -1))).softmax(-1) @ book


def net_vlad(x: Tensor) -> Tensor:
    """Softmax over the clusters, sum over the tokens, minus the centres."""
    centres = weight(5, 8)
    a = (x @ weight(8, 5)).softmax(-1)
    return F.normalize(kt(a) @ x - a.sum(1).unsqueeze(-1) * centres, dim=-1)


def capsules(x: Tensor) -> Tensor:
    """Two rounds of routing: softmax over the capsules above, sum over those below."""
    u = torch.einsum("bid,ijde->bjie", x, weight(6, 5, 8, 4))
    b = torch.zeros(2, 5, 6)
    v = torch.zeros(2, 5, 4)
    for _ in range(2):
        c = b.softmax(1)
        v = torch.einsum("bji,bjie->bje", c, u)
        b = b + torch.einsum("bje,bjie->bji", v, u)
    return v


def branches(x: Tensor) -> Tensor:
    """Selective kernels: a softmax over two branches per channel."""
    image = x.permute(0, 2, 1).reshape(2, 8, 2, 3)
    pair = torch.stack([F.avg_pool2d(image, 3, 1, 1), image], 1)
    squeezed = pair.sum(1).mean((-2, -1)) @ weight(8, 4)
    chosen = (squeezed @ weight(4, 16)).reshape(2, 2, 8).softmax(1)
    return (chosen[..., None, None] * pair).sum(1)


def kernels_mixed(x: Tensor) -> Tensor:
    """Dynamic convolution: attention over kernels, which are constants; the softmax is over kernels."""
    gates = (x.mean(1) @ weight(8, 4)).softmax(-1)
    kernel = torch.einsum("bk,kdf->bdf", gates, weight(4, 8, 8))
    return x @ kernel


def beam(x: Tensor) -> Tensor:
    """One step of a decoder: a distribution, an expected embedding through the tied matrix."""
    embedding = weight(30, 8)
    return (x @ embedding.T).softmax(-1) @ embedding


def hopfield(x: Tensor) -> Tensor:
    """Retrieval from stored patterns, two steps: keys and values are constants, and the same."""
    patterns = weight(12, 8)
    for _ in range(2):
        x = (2.0 * x @ patterns.T).softmax(-1) @ patterns
    return x


CONSTANT = ("attention", *KEYED)

CASES: dict[str, LookAlike] = {
    "class head": LookAlike(class_head, TOKENS, reason=UNSUMMED),
    "class head and a layer": LookAlike(two_layer_head, TOKENS, CONSTANT, reason=("",), constant=("k", "v")),
    "expected class": LookAlike(expected_class, TOKENS, CONSTANT, reason=("",), constant=("k", "v")),
    "expected bins": LookAlike(expected_bins, TOKENS, CONSTANT, reason=("",), constant=("k", "v")),
    "experts, all of them": LookAlike(dense_experts, TOKENS, KEYED, reason=("",)),
    "experts, linear": LookAlike(linear_experts, TOKENS, KEYED, reason=("",)),
    "experts, the best two": LookAlike(top_experts, TOKENS, KEYED, reason=("",)),
    "experts, the best two normalised": LookAlike(top_experts_renormalised, TOKENS, KEYED, reason=("",)),
    "experts, in a loop": LookAlike(experts_by_loop, TOKENS, KEYED, reason=("",)),
    "experts, soft slots": LookAlike(
        soft_experts, TOKENS, (*CONSTANT, "slot-attention", "latent-attention"), reason=("",), constant=("k",)
    ),
    "mixture of softmaxes": LookAlike(mixture_of_softmaxes, TOKENS, KEYED, reason=("",)),
    "mixture of Gaussians": LookAlike(mixture_of_gaussians, TOKENS, KEYED, reason=("",)),
    "contrastive": LookAlike(contrastive, ((5, 8), (6, 8)), reason=UNSUMMED),
    "contrastive loss": LookAlike(contrastive_loss, ((6, 8), (6, 8))),
    "zero-shot classes and a layer": LookAlike(
        zero_shot, ((5, 8), (6, 8)), ("attention",), reason=("",), constant=("v",)
    ),
    "classes per time step": LookAlike(time_classes, TOKENS, reason=UNSUMMED),
    "mean of class scores": LookAlike(marginal_of_classes, TOKENS, reason=UNSUMMED),
    "pooling of class scores": LookAlike(multi_class_pooling, TOKENS, ("pooling", *KEYED), reason=("",)),
    "two streams": LookAlike(two_streams, TOKENS, ("pooling", *KEYED), reason=("",)),
    "codebook": LookAlike(codebook, TOKENS),
    "codebook by products": LookAlike(codebook_by_products, TOKENS),
    "soft codebook": LookAlike(soft_codebook, TOKENS, CONSTANT, reason=("",), constant=("k", "v")),
    "soft codebook by distance": LookAlike(soft_codebook_by_distance, TOKENS, KEYED, reason=("",)),
    "clusters of local descriptors": LookAlike(net_vlad, TOKENS, ("slot-attention",), reason=("",)),
    "capsules": LookAlike(capsules, TOKENS, ("slot-attention",), reason=("",)),
    "selective kernels": LookAlike(branches, TOKENS, KEYED, reason=("",)),
    "mixed kernels": LookAlike(kernels_mixed, TOKENS, CONSTANT, reason=("",), constant=("k", "v")),
    "tied embedding": LookAlike(beam, TOKENS, CONSTANT, reason=("",), constant=("k", "v")),
    "stored patterns": LookAlike(hopfield, TOKENS, CONSTANT, reason=("",), constant=("k", "v")),
}
"""A softmax of products with constant keys and constant values is attention by its algebra. Where it is
called so, the test asks for what tells it from the rest: ``k`` and ``v`` are in ``site.constant``."""
