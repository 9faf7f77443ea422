"""Attention in torch.export graphs: fused, and a decoder as transformers spells it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim

from rewriter.algebra.evaluate import evaluate
from rewriter.algebra.prims import Constant, Einsum, Map, Softmax
from rewriter.program.fx import trace
from tests.algebra.frontends.aten.family import INF, Family, arrays, check_operator, leaves

ATTENTION = Family(
    {
        "plain": lambda t: F.scaled_dot_product_attention(t.q, t.k, t.v),
        "scale": lambda t: F.scaled_dot_product_attention(t.q, t.k, t.v, scale=0.3),
        "scale-one": lambda t: F.scaled_dot_product_attention(t.q, t.k, t.v, scale=1.0),
        "causal": lambda t: F.scaled_dot_product_attention(t.q, t.q, t.q, is_causal=True),
        "causal-longer-keys": lambda t: F.scaled_dot_product_attention(t.q, t.k, t.v, is_causal=True),
        "mask": lambda t: F.scaled_dot_product_attention(t.q, t.k, t.v, attn_mask=t.visible),
        "bias": lambda t: F.scaled_dot_product_attention(
            t.q, t.k, t.v, attn_mask=torch.where(t.visible, 0.5, -INF)
        ),
        "mask-2d": lambda t: F.scaled_dot_product_attention(t.q, t.k, t.v, attn_mask=t.visible[1, 0]),
        "grouped": lambda t: F.scaled_dot_product_attention(t.q, t.kg, t.vg, enable_gqa=True),
        "three-axes": lambda t: F.scaled_dot_product_attention(t.q[0], t.k[0], t.v[0]),
    }
)


@pytest.mark.parametrize("core", [False, True], ids=["captured", "core"])
@pytest.mark.parametrize("case", ATTENTION.cases)
def test_operator(case: str, core: bool) -> None:
    check_operator(ATTENTION, case, core)


@pytest.mark.parametrize(
    ("case", "guarded"), [("plain", False), ("causal", False), ("mask", True), ("bias", True)]
)
def test_empty_rows_are_guarded_where_there_is_a_mask(case: str, guarded: bool) -> None:
    form = ATTENTION.form(case)
    assert isinstance(form.form, Einsum)
    weights = form.inputs[0]
    if guarded:
        assert weights.form == Map("where")
        condition, zero, weights = weights.inputs
        assert condition.form == Map("isnan")
        assert condition.inputs == (weights,)
        assert isinstance(zero.form, Constant) and float(zero.form.load()) == 0
    assert isinstance(weights.form, Softmax)


class Decoder(torch.nn.Module):
    """Rotary positions, grouped keys, a causal mask that also hides padding; eager or fused."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.embedding = torch.nn.Embedding(19, 24)
        self.q, self.k, self.v = torch.nn.Linear(24, 24), torch.nn.Linear(24, 8), torch.nn.Linear(24, 8)
        self.o = torch.nn.Linear(24, 24, bias=False)
        self.frequency: torch.Tensor
        self.register_buffer("frequency", torch.tensor([1.0, 0.1]))

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        batch, length = ids.shape
        x = self.embedding(ids)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        q, k, v = (f(x).view(batch, length, -1, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        angle = torch.arange(length)[:, None].float() * torch.cat([self.frequency] * 2)
        q, k = (z * angle.cos() + torch.cat([-z[..., 2:], z[..., :2]], -1) * angle.sin() for z in (q, k))
        k, v = (z[:, :, None].expand(batch, 2, 3, length, 4).reshape(batch, 6, length, 4) for z in (k, v))
        b, i, j = torch.arange(batch), torch.arange(length), torch.arange(length)
        seen = (j[None, None, None] <= i[None, None, :, None]) & attention_mask.bool()[
            b[:, None, None, None], j[None, None, None]
        ]
        seen = seen.expand(batch, -1, length, length)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        else:
            bias = torch.where(seen, torch.tensor(0.0), torch.finfo(torch.float32).min)
            mixed = (q @ k.transpose(2, 3) * 0.5 + bias).softmax(-1, dtype=torch.float32) @ v
        result: torch.Tensor = self.o(mixed.transpose(1, 2).reshape(batch, length, -1))
        return result


@pytest.mark.parametrize("fused", [False, True])
def test_decoder_at_dynamic_sizes(fused: bool) -> None:
    torch.manual_seed(3)
    module = Decoder(fused).eval()
    batch, length = Dim("batch", min=2), Dim("length", min=2)
    axes = {0: batch, 1: length}
    example = torch.randint(19, (2, 5))
    captured = trace(module, (example, torch.ones_like(example)), dynamic_shapes=(axes, axes))
    form = captured.prims()[captured.graph.outputs[0]]
    assert leaves(form) == set()
    ids = torch.randint(19, (3, 7))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    mask[2, 6:] = 0
    (got,) = evaluate([form], arrays(captured, {"ids": ids, "mask": mask}))
    np.testing.assert_allclose(got, module(ids, mask).detach().numpy(), rtol=0, atol=3e-6)
