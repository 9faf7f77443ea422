"""What is done between heads and after them: mixing, gates, averages, residual scores."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.sites.spellings.entry import SCALE, B, D, E, G, H, L, S, Theme, kt, soft

__all__ = ["HEADS"]

HEADS = Theme("heads")


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ kt(k) * SCALE


@HEADS.spelling(traits=("head-mixing",), shapes={"mix": (H, H)})
def scores_mixed(q: Tensor, keys: Tensor, values: Tensor, mix: Tensor) -> Tensor:
    return soft(torch.einsum("bhij,gh->bgij", scores(q, keys), mix), values)


@HEADS.spelling(traits=("head-mixing",), shapes={"mix": (H, H)})
def weights_mixed(q: Tensor, keys: Tensor, values: Tensor, mix: Tensor) -> Tensor:
    return torch.einsum("bhij,gh->bgij", scores(q, keys).softmax(-1), mix) @ values


@HEADS.spelling(traits=("head-mixing",), shapes={"mix": (H, H)})
def weights_mixed_by_multiplying_and_adding(q: Tensor, keys: Tensor, values: Tensor, mix: Tensor) -> Tensor:
    weights = scores(q, keys).softmax(-1)
    return (weights[:, None] * mix[:, :, None, None]).sum(2) @ values


SHARED = {"mix": (H, H), "keys": (B, G, S, D), "values": (B, G, S, D)}


@HEADS.spelling(traits=("head-mixing",), shapes=SHARED)
def scores_of_heads_that_share_keys_mixed(q: Tensor, keys: Tensor, values: Tensor, mix: Tensor) -> Tensor:
    k, v = (x.repeat_interleave(H // G, 1) for x in (keys, values))
    return soft(torch.einsum("bhij,gh->bgij", scores(q, k), mix), v)


@HEADS.spelling(traits=("head-mixing",), shapes=SHARED)
def weights_of_heads_that_share_keys_mixed(q: Tensor, keys: Tensor, values: Tensor, mix: Tensor) -> Tensor:
    k, v = (x[:, :, None].expand(-1, -1, H // G, -1, -1).flatten(1, 2) for x in (keys, values))
    return torch.einsum("bhij,gh->bgij", scores(q, k).softmax(-1), mix) @ v


@HEADS.spelling(shapes={"keys": (B, H, 1, D), "values": (B, H, 1, D)})
def one_key_that_is_normalised(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The norm of the key is a product that the scores hold, too: it mixes nothing."""
    keys = keys / (keys.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    return soft(scores(q, keys), values)


@HEADS.spelling(traits=("head-mixing", "weight-function"))
class MixedBeforeAndAfter(nn.Module):
    """Linear layers over the heads, moved to the last axis; what they add is not normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(H, H), nn.Linear(H, H)

    def forward(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        s = self.before(scores(q, keys).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        weights = self.after(s.softmax(-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return weights @ values


@HEADS.spelling(traits=("head-mixing", "weight-function"))
class MixedByPointwiseConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Conv2d(H, H, 1), nn.Conv2d(H, H, 1)

    def forward(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return self.after(self.before(scores(q, keys)).softmax(-1)) @ values


@HEADS.spelling(traits=("weight-function",))
class PlacesMixedIn(nn.Module):
    """Weights are a gated sum of contents and places, both normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(H, L, L))
        self.gate = nn.Parameter(torch.randn(1, H, 1, 1))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate)
        weights = (1 - gate) * scores(q, k).softmax(-1) + gate * self.places.softmax(-1)
        return (weights / weights.sum(-1, keepdim=True)) @ v


@HEADS.spelling(shapes={"gate": (H,)})
def heads_gated(q: Tensor, keys: Tensor, values: Tensor, gate: Tensor) -> Tensor:
    return soft(scores(q, keys), values) * gate.sigmoid().view(1, H, 1, 1)


@HEADS.spelling()
class OutputGated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(E, E)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        o = soft(scores(q, k), v).transpose(1, 2).reshape(B, L, E)
        return o * torch.sigmoid(self.gate(x))


@HEADS.spelling()
class HeadsGatedByTokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(E, H)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        o = soft(scores(q, k), v).transpose(1, 2)
        return (o * self.gate(x).sigmoid().unsqueeze(-1)).flatten(2)


@HEADS.spelling(shapes={"gate": (H,)}, traits=("weight-function",))
def weights_of_heads_switched_off(q: Tensor, keys: Tensor, values: Tensor, gate: Tensor) -> Tensor:
    return (scores(q, keys).softmax(-1) * (gate > 0).float().view(1, H, 1, 1)) @ values


@HEADS.spelling(mask="bias", shapes={"before": (B, H, L, L)})
def scores_of_the_layer_before_added(
    q: Tensor, k: Tensor, v: Tensor, before: Tensor
) -> tuple[Tensor, Tensor]:
    s = scores(q, k) + before
    return soft(s, v), s


@HEADS.spelling(traits=("weight-function",))
def values_subtracted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The mean over the keys is taken off the weights."""
    weights = scores(q, k).softmax(-1)
    return (weights - weights.mean(-1, keepdim=True)) @ v


@HEADS.spelling(sites=1)
def outputs_averaged_over_heads(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return soft(scores(q, keys), values).mean(1)


@HEADS.spelling()
def values_added_afterwards(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft(scores(q, k), v) + v


@HEADS.spelling()
class MergedByOneMatrixPerHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Parameter(torch.randn(H, D, E))

    def forward(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return torch.einsum("bhqd,hde->bqe", soft(scores(q, keys), values), self.out)
