"""What is done to queries, keys and their products: norms, temperatures, rotations, bounds, distances."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.sites.spellings.entry import EVERYWHERE, SCALE, B, D, E, H, L, S, Theme, kt, soft

__all__ = ["SCORES"]

SCORES = Theme("scores")
PER_HEAD = {"bias": (H, 1, 1)}


def turns(width: int = D) -> Tensor:
    """Angles of every position and every second feature."""
    rates = 1.0 / 10000 ** (torch.arange(0, width, 2).float() / width)
    return torch.outer(torch.arange(L).float(), rates)


def turned_halves(x: Tensor) -> Tensor:
    width = x.shape[-1]
    angles = torch.cat([turns(width)] * 2, -1)
    a, b = x[..., : width // 2], x[..., width // 2 :]
    return x * angles.cos() + torch.cat([-b, a], -1) * angles.sin()


def turned_pairs(x: Tensor) -> Tensor:
    angles = turns().repeat_interleave(2, -1)
    other = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    return x * angles.cos() + other * angles.sin()


@SCORES.spelling(traits=("softcap",))
def softcapped_by_division(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    s = q @ kt(keys) * SCALE
    s = s / 50.0
    s = torch.tanh(s)
    return soft(s * 50.0, values)


@SCORES.spelling(traits=("softcap",))
def softcapped_then_masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = 30.0 * torch.tanh(q @ kt(k) * (SCALE / 30.0))
    return soft(s + torch.full((L, L), -torch.inf).triu(1), v)


@SCORES.spelling(traits=("sink",), shapes={"bias": (H,)})
def sink_beside_masked_scores(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    s = q @ kt(k) * SCALE + torch.full((L, L), -torch.inf).triu(1)
    s = torch.cat([s, bias.reshape(1, -1, 1, 1).expand(B, -1, L, -1)], -1)
    s = s - s.max(-1, keepdim=True).values
    return F.softmax(s, -1, dtype=s.dtype)[..., :-1] @ v


@SCORES.spelling(traits=("sink",), shapes={"bias": (H,)})
def sink_first_in_the_row(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    s = torch.cat([bias.view(1, H, 1, 1).expand(B, H, L, 1), q @ kt(keys) * SCALE], -1)
    return s.softmax(-1)[..., 1:] @ values


@SCORES.spelling(traits=("sink",))
class SinkOfTheQuery(nn.Module):
    """What a query leaves to no key is computed from it."""

    def __init__(self) -> None:
        super().__init__()
        self.rest = nn.Linear(D, 1)

    def forward(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        s = torch.cat([q @ kt(keys) * SCALE, self.rest(q)], -1)
        return s.softmax(-1)[..., :-1] @ values


@SCORES.spelling(traits=("sink",), shapes={"bias": (H, 1, 1)})
def sink_in_the_denominator(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    e = (q @ kt(keys) * SCALE).exp()
    return (e / (e.sum(-1, keepdim=True) + bias.exp())) @ values


@SCORES.spelling(scale=10.0)
def cosines(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return soft(F.normalize(q, dim=-1) @ kt(F.normalize(keys, dim=-1)) * 10.0, values)


@SCORES.spelling(traits=("score-function",))
def cosines_by_division(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    lengths = q.norm(dim=-1, keepdim=True) @ kt(keys.norm(dim=-1, keepdim=True))
    return soft(q @ kt(keys) / lengths, values)


@SCORES.spelling(shapes=PER_HEAD)
def cosines_with_a_temperature(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    s = F.normalize(q, dim=-1) @ kt(F.normalize(keys, dim=-1))
    return soft(s * bias.clamp(max=math.log(100.0)).exp(), values)


@SCORES.spelling(shapes=PER_HEAD)
def one_temperature_per_head(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    return soft(q @ kt(keys) * bias, values)


@SCORES.spelling(shapes=PER_HEAD)
def divided_by_one_temperature_per_head(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    return soft(q @ kt(keys) / bias.exp(), values)


@SCORES.spelling(shapes={"bias": (1,)})
def one_temperature(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    return soft(q @ kt(keys) * bias.exp(), values)


@SCORES.spelling()
def longer_sequences_are_sharper(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each query's scores grow with the logarithm of the number of keys that it sees."""
    sharper = torch.arange(1, L + 1).float().log().clamp(min=1.0)[:, None]
    s = q @ kt(k) * SCALE * sharper
    return soft(s.masked_fill(torch.ones(L, L).triu(1).bool(), -torch.inf), v)


@SCORES.spelling()
class QueriesAndKeysNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.LayerNorm(D), nn.LayerNorm(D)

    def forward(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return soft(self.q(q) @ kt(self.k(keys)) * SCALE, values)


@SCORES.spelling()
class QueriesAndKeysNormedByTheRoot(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = (nn.Parameter(torch.randn(D)) for _ in range(2))

    def forward(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        def norm(x: Tensor, weight: Tensor) -> Tensor:
            return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))

        return soft(norm(q, self.q) @ kt(norm(keys, self.k)) * SCALE, values)


@SCORES.spelling(mask="causal")
def rotated_halves(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = turned_halves(q) @ kt(turned_halves(k)) * SCALE
    return soft(s + torch.full((L, L), -torch.inf).triu(1), v)


@SCORES.spelling(scale=SCALE)
def rotated_pairs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft(turned_pairs(q) @ kt(turned_pairs(k)) * SCALE, v)


@SCORES.spelling(scale=SCALE)
def rotated_in_part(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = (torch.cat([turned_halves(x[..., :4]), x[..., 4:]], -1) for x in (q, k))
    return soft(q @ kt(k) * SCALE, v)


@SCORES.spelling(scale=SCALE, routes=EVERYWHERE - {"torchscript"})
def rotated_as_complex_numbers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    turn = torch.polar(torch.ones(L, D // 2), turns())

    def rotated(x: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn).flatten(-2)

    return soft(rotated(q) @ kt(rotated(k)) * SCALE, v)


@SCORES.spelling(scale=SCALE)
def rotated_inside_fused_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(turned_halves(q), turned_halves(k), v, is_causal=True)


@SCORES.spelling()
def contents_and_rotated_places_apart(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two products, added: one of features that are rotated, one of features that are not."""
    s = q[..., :4] @ kt(k[..., :4]) + turned_halves(q[..., 4:]) @ kt(turned_halves(k[..., 4:]))
    return soft(s * SCALE, v)


@SCORES.spelling()
def square_of_the_distance_written_out(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """``-|q - k|² / 2``: a product and the norms of both."""
    norms = q.pow(2).sum(-1, keepdim=True) + kt(keys.pow(2).sum(-1, keepdim=True))
    return soft(-0.5 * (norms - 2 * q @ kt(keys)), values)


@SCORES.spelling(traits=("score-function",))
def square_of_the_distance(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    apart = q[..., :, None, :] - keys[..., None, :, :]
    return soft(-0.5 * apart.pow(2).sum(-1), values)


@SCORES.spelling(shapes={"weight": (D, D)})
def bilinear_form(q: Tensor, keys: Tensor, values: Tensor, weight: Tensor) -> Tensor:
    return soft(q @ weight @ kt(keys), values)


@SCORES.spelling(scale=SCALE)
def scale_from_the_shape(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return soft(q @ kt(keys) / q.size(-1) ** 0.5, values)


@SCORES.spelling(scale=SCALE)
def scale_as_a_tensor(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return soft(q @ kt(keys) / torch.sqrt(torch.tensor(D, dtype=torch.float32)), values)


@SCORES.spelling(scale=SCALE)
class ScaleInABuffer(nn.Module):
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full((1, 1, 1, 1), SCALE))

    def forward(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return soft(q @ kt(keys) * self.scale, values)


@SCORES.spelling(scale=SCALE)
def fourth_root_on_both(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return soft((q / D**0.25) @ (kt(keys) / D**0.25), values)


@SCORES.spelling(scale=SCALE, mask="bias")
def bias_before_the_scale(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return soft((q @ kt(k) + bias) * SCALE, v)


@SCORES.spelling(scale=SCALE)
def alpha_and_no_beta(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    q, k, v = (x.flatten(0, 1) for x in (q, keys, values))
    s = torch.baddbmm(torch.empty(B * H, L, S), q, k.transpose(1, 2), beta=0.0, alpha=SCALE)
    return torch.bmm(s.softmax(-1), v).view(B, H, L, D)


@SCORES.spelling(scale=SCALE)
def multiplied_feature_by_feature(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    s = (q.unsqueeze(-2) * keys.unsqueeze(-3)).sum(-1) * SCALE
    return (s.softmax(-1).unsqueeze(-1) * values.unsqueeze(-3)).sum(-2)


@SCORES.spelling(scale=SCALE)
def centred_before_the_softmax(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The mean over the keys is subtracted: it cancels."""
    s = q @ kt(keys) * SCALE
    return soft(s - s.mean(-1, keepdim=True), values)


@SCORES.spelling(shapes={"gain": (B, L, E), "x": (B, L, E)})
def temperature_from_the_query(q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
    sharper = F.softplus(x[..., :H].transpose(1, 2))[..., None]
    return soft(q @ kt(k) * sharper, v)
