"""Mechanisms of the literature, each named as what it is, from projections to values as papers write them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rewriter
from rewriter.sites import AttentionSite

B, H, N, D = 2, 3, 10, 8
C = H * D


def heads(x: Tensor) -> Tensor:
    return x.view(B, -1, H, D).transpose(1, 2)


def kt(k: Tensor) -> Tensor:
    return k.transpose(-2, -1)


Mechanism = Callable[[Tensor, Tensor, Tensor], Tensor]


class Projected(nn.Module):
    """Queries, keys and values are linear functions of the tokens."""

    def __init__(self, mechanism: Mechanism) -> None:
        super().__init__()
        self.mechanism = mechanism
        self.q, self.k, self.v = nn.Linear(C, C), nn.Linear(C, C), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.mechanism(heads(self.q(x)), heads(self.k(x)), heads(self.v(x)))


def performer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = (torch.exp(x - x.pow(2).sum(-1, keepdim=True) / 2) for x in (q, k))
    return (q @ (kt(k) @ v)) * (1 / (q @ k.sum(-2)[..., None]))


def elu_plus_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    q, k = F.elu(q) + 1, F.elu(k) + 1
    z = 1 / (torch.einsum("nlhd,nhd->nlh", q, k.sum(1)) + 1e-6)
    return torch.einsum("nlhd,nhmd,nlh->nlhm", q, torch.einsum("nshd,nshm->nhmd", k, v), z)


def causal_sums(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = q.softmax(-1), k.exp()
    inverse = 1 / torch.einsum("...nd,...nd->...n", q, k.cumsum(-2))
    context = torch.einsum("...nd,...ne->...nde", k, v).cumsum(-3)
    return torch.einsum("...nde,...nd,...n->...ne", context, q, inverse)


def causal_sums_with_an_epsilon(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = F.elu(q) + 1, F.elu(k) + 1
    context = (k[..., None] * v[..., None, :]).cumsum(2)
    out = (q[..., None, :] @ context)[..., 0, :]
    return out / ((q * k.cumsum(2)).sum(-1, keepdim=True) + 1e-6)


def causal_sums_undivided(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q[..., None] * torch.cumsum(k[..., None] * v[..., None, :], -3)).sum(-2)


def retention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    ahead = torch.arange(N)[:, None] - torch.arange(N)
    return (q @ kt(k) * torch.where(ahead >= 0, 0.9 ** ahead.float(), 0.0)) @ v


def channels(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (F.normalize(kt(x), dim=-1) for x in (q, k, v))
    return torch.softmax(q @ kt(k) * 2.0, -1) @ v


def differential(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    a, b = (torch.softmax(x @ kt(y), -1) for x, y in zip(q.chunk(2, -1), k.chunk(2, -1), strict=True))
    return (a - 0.3 * b) @ v


FROM_TOKENS: dict[str, tuple[Mechanism, str, str]] = {
    "softmax": (lambda q, k, v: torch.softmax(q @ kt(k) / math.sqrt(D), -1) @ v, "attention", "softmax"),
    "random features, one over the sum": (performer, "linear-attention", "sum"),
    "elu + 1, in one product with the sum": (elu_plus_one, "linear-attention", "none"),
    "running sums, in one product with their inverse": (causal_sums, "linear-attention", "sum"),
    "running sums, undivided": (causal_sums_undivided, "linear-attention", "none"),
    "running sums, with an epsilon": (causal_sums_with_an_epsilon, "linear-attention", "none"),
    "re-associable": (lambda q, k, v: (q @ kt(k) / N) @ v, "linear-attention", "none"),
    "softmax features": (
        lambda q, k, v: q.softmax(-1) @ (kt(k.softmax(-2)) @ v),
        "linear-attention",
        "none",
    ),
    "retention": (retention, "linear-attention", "none"),
    "sigmoid": (
        lambda q, k, v: torch.sigmoid(q @ kt(k) - math.log(N)) @ v,
        "unnormalised-attention",
        "sigmoid",
    ),
    "squared relu": (lambda q, k, v: F.relu(q @ kt(k)).square() @ v / N, "unnormalised-attention", "relu"),
    "channels": (channels, "channel-attention", "softmax"),
}


def only_site(module: nn.Module, *inputs: Tensor) -> AttentionSite:
    program = rewriter.trace(module.eval(), inputs)
    assert len(program.sites) == 1, program.refused
    return program.sites[0]


@pytest.mark.parametrize("name", FROM_TOKENS)
def test_kind_from_tokens(name: str) -> None:
    mechanism, kind, normalizer = FROM_TOKENS[name]
    site = only_site(Projected(mechanism), torch.randn(B, N, C))
    assert (site.kind, site.normalizer, site.heads.plain()) == (kind, normalizer, H)


@pytest.mark.parametrize("mechanism", [causal_sums, causal_sums_with_an_epsilon, causal_sums_undivided])
def test_running_sums_are_causal_and_can_be_computed_in_another_order(mechanism: Mechanism) -> None:
    module = Projected(mechanism).eval()
    length = torch.export.Dim("length", min=2, max=256)
    program = rewriter.trace(module, (torch.randn(B, N, C),), dynamic_shapes=({1: length},))
    (site,) = program.sites
    assert (site.facts.mask, site.facts.only_band, site.empty_row) == ("causal", True, "never")
    new = rewriter.passes.ReassociatedAttention()(program)
    for n in (2, 7, 130):
        x = torch.randn(B, n, C)
        assert torch.as_tensor(new.run(x)[0]).allclose(module(x), rtol=1e-4, atol=1e-4)


def _over_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q[..., None] * torch.cumsum(k[..., None] * v[..., None, :], 1)).sum(-2)


def _of_keys_alone(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q[..., None] * (k.cumsum(-2)[..., None] * v[..., None, :])).sum(-2)


def _over_features(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q[..., None] * torch.cumsum(k[..., None] * v[..., None, :], -2)).sum(-2)


@pytest.mark.parametrize("mechanism", [_over_heads, _of_keys_alone, _over_features])
def test_other_running_sums_are_no_attention_over_tokens(mechanism: Mechanism) -> None:
    program = rewriter.trace(Projected(mechanism).eval(), (torch.randn(B, N, C),))
    assert not [site for site in program.sites if site.queries.plain() == N]


class Latent(nn.Module):
    def __init__(self, queries: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(queries, C))
        self.k, self.v = nn.Linear(C, C), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        q = heads(self.latents[None].expand(B, -1, -1))
        weights: Tensor = torch.softmax(q @ kt(heads(self.k(x))), -1)
        return weights @ heads(self.v(x))


def test_learned_queries() -> None:
    site = only_site(Latent(5), torch.randn(B, N, C))
    assert (site.kind, site.constant, site.queries.plain()) == ("latent-attention", ("q",), 5)
    site = only_site(Latent(1), torch.randn(B, N, C))
    assert (site.kind, site.constant) == ("pooling", ("q",))


class Slots(nn.Module):
    def __init__(self, renormalised: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(C, C), nn.Linear(C, C), nn.Linear(C, C)
        self.renormalised = renormalised

    def forward(self, x: Tensor, slots: Tensor) -> Tensor:
        weights = torch.softmax(self.k(x) @ kt(self.q(slots)) * C**-0.5, -1)
        if self.renormalised:
            weights = weights + 1e-8
            weights = weights / weights.sum(1, keepdim=True)
        values: Tensor = self.v(x)
        return kt(weights) @ values


def test_slots_compete() -> None:
    inputs = torch.randn(B, N, C), torch.randn(B, 4, C)
    site = only_site(Slots(True), *inputs)
    assert (site.kind, site.normalizer) == ("slot-attention", "softmax over queries")
    assert (site.queries.plain(), site.keys.plain()) == (4, N)
    program = rewriter.trace(Slots(False), inputs)
    assert not program.sites
    assert [r.nearest for r in program.refused] == ["slot-attention"]


class Additive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.w = nn.Linear(C, C), nn.Linear(C, C), nn.Linear(C, 1)

    def forward(self, state: Tensor, x: Tensor) -> Tensor:
        scores = self.w(torch.tanh(self.q(state)[:, None] + self.k(x))).squeeze(-1)
        weights: Tensor = scores.softmax(-1)[:, None]
        return (weights @ x).squeeze(1)


def test_additive() -> None:
    site = only_site(Additive(), torch.randn(B, C), torch.randn(B, N, C))
    assert site.kind == "additive-attention"


class Positional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.v = nn.Linear(C, C)
        self.table = nn.Parameter(torch.randn(H, N, N))

    def forward(self, x: Tensor) -> Tensor:
        return self.table.softmax(-1) @ heads(self.v(x))


def test_positional() -> None:
    site = only_site(Positional(), torch.randn(B, N, C))
    assert (site.kind, site.formula.q, site.heads.plain()) == ("positional-attention", None, H)


class Convolved(nn.Module):
    """Each token weighs its neighbours with a kernel that it predicts itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.kernels, self.v = nn.Linear(C, H * width), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.kernels(x).view(B * N * H, self.width, 1).softmax(1)
        v = F.unfold(kt(self.v(x))[..., None], (self.width, 1), padding=((self.width - 1) // 2, 0))
        v = kt(v).reshape(B * N * H, D, self.width)
        convolved: Tensor = v @ weights
        return convolved.view(B, N, C)


def test_predicted_kernels_over_neighbours() -> None:
    site = only_site(Convolved(5), torch.randn(B, N, C))
    assert (site.kind, site.keys.plain(), site.heads.plain()) == ("outlook-attention", 5, H)


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(C, 4)
        self.experts = nn.ModuleList([nn.Linear(C, C) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        outputs = torch.stack([expert(x) for expert in self.experts], 2)
        return torch.einsum("bne,bnec->bnc", self.router(x).softmax(-1), outputs)


def test_routers_and_mixtures_are_refused() -> None:
    program = rewriter.trace(Experts().eval(), (torch.randn(B, N, C),))
    assert not program.sites
    assert "learned classes, experts or branches" in program.refused[0].reason
    program = rewriter.trace(Projected(differential).eval(), (torch.randn(B, N, C),))
    assert not program.sites
    assert any("mix several normalisers" in r.reason for r in program.refused)


class Dropped(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)


def test_active_dropout_in_a_fused_operator_is_refused() -> None:
    program = rewriter.trace(Dropped(), tuple(torch.randn(B, H, N, D) for _ in range(3)))
    assert not program.sites
    assert [r.reached for r in program.refused] == ["scores"]
    assert "active dropout" in program.refused[0].reason


def test_layers_whose_weights_are_inputs_are_no_attention() -> None:
    class Layers(nn.Module):
        def forward(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
            return x @ a @ b

    program = rewriter.trace(Layers(), (torch.randn(B, N, C), torch.randn(C, 7), torch.randn(7, 5)))
    assert not program.sites
    assert "layers, not attention" in program.refused[0].reason
