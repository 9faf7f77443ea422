"""torch.export graphs in primitive form, against torch itself."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim

from rewriter.algebra.evaluate import bind, evaluate
from rewriter.algebra.frontends.aten import translate
from rewriter.algebra.prims import Constant, Einsum, Gather, Iota, Leaf, Map, Prim, Softmax
from rewriter.algebra.sizes import Size
from rewriter.program.fx import FxProgram, trace
from rewriter.program.graph import Graph, Node, Value

Case = Callable[[Any], Any]

INF = float("inf")
ops = torch.ops.aten


def tensors(batch: int = 2, queries: int = 5, keys: int = 7, seed: int = 0) -> dict[str, torch.Tensor]:
    """The operands of every case: odd sizes, float64."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def whole(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=g)

    visible = torch.rand(batch, 1, queries, keys, generator=g) < 0.6
    visible[0, 0, 1] = False  # a row without any visible key
    return {
        "q": normal(batch, 6, queries, 4),
        "k": normal(batch, 6, keys, 4),
        "v": normal(batch, 6, keys, 3),
        "kg": normal(batch, 2, keys, 4),
        "vg": normal(batch, 2, keys, 3),
        "a": normal(batch, queries, 6),
        "ids": whole(9, batch, queries),
        "visible": visible,
        "m": normal(4, 6),
        "n": normal(6, 9),
        "u": normal(6),
        "e": normal(9, 6),
        "j": whole(6, 3),
        "z": whole(9, 4, 6) - 4,
        "t": normal(4, 6) > 0,
        "pad": normal(batch, queries) > -0.5,
    }


def positions(t: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row, query and key numbers as transformers spells them."""
    batch, queries, keys = torch.arange(t.q.shape[0]), torch.arange(t.q.shape[2]), torch.arange(t.k.shape[2])
    return batch[:, None, None, None], queries[None, None, :, None], keys[None, None, None, :]


def packed(t: Any) -> torch.Tensor:
    """Which sequence of a packed row each position belongs to: with plain positions, the first."""
    ids = torch.arange(t.a.shape[1]).unsqueeze(0).expand(t.a.shape[0], -1)
    first = ids[:, :1] - 1
    return (torch.diff(ids, prepend=first, dim=-1) != 1).cumsum(-1)


POINTWISE: dict[str, Case] = {
    "add": lambda t: t.m + t.u,
    "add-alpha": lambda t: torch.add(t.m, t.u, alpha=3),
    "add-number": lambda t: t.m + 2,
    "add-truths": lambda t: t.t + (t.m > 1),
    "sub-alpha": lambda t: torch.sub(t.m, t.u, alpha=0.5),
    "rsub": lambda t: 2 - t.m,
    "rsub-alpha": lambda t: torch.rsub(t.m, t.u, alpha=2),
    "mul-truths": lambda t: t.t * (t.m > 0.3),
    "mul-truth-float": lambda t: t.t * t.m,
    "div": lambda t: t.m / t.u,
    "div-whole": lambda t: t.z / 3,
    "div-floor": lambda t: torch.div(t.z, 3, rounding_mode="floor"),
    "div-floor-float": lambda t: torch.div(t.m, 0.3, rounding_mode="floor"),
    "div-trunc-natural": lambda t: torch.div(torch.arange(7), 3, rounding_mode="trunc"),
    "floor-divide": lambda t: t.z // 2,
    "remainder": lambda t: t.z % 3,
    "neg": lambda t: -t.m,
    "exp": lambda t: t.m.exp(),
    "exp2": lambda t: torch.exp2(t.m),
    "log": lambda t: t.m.abs().log() + t.m.abs().log1p() - t.m.expm1(),
    "sqrt": lambda t: t.m.abs().sqrt(),
    "rsqrt": lambda t: t.m.abs().rsqrt(),
    "reciprocal": lambda t: t.m.reciprocal(),
    "pow": lambda t: t.m**2,
    "pow-negative": lambda t: t.m**-1,
    "pow-half": lambda t: t.m.abs() ** 0.5,
    "pow-number-base": lambda t: 2.0**t.m,
    "pow-tensors": lambda t: t.m.abs() ** t.u,
    "pow-whole-base": lambda t: torch.pow(t.z, 2),
    "square": lambda t: torch.square(t.m),
    "tanh": lambda t: t.m.tanh(),
    "sigmoid": lambda t: t.m.sigmoid(),
    "relu": lambda t: t.m.relu(),
    "erf": lambda t: t.m.erf(),
    "sin": lambda t: t.m.sin() + t.m.cos(),
    "abs": lambda t: t.m.abs() + t.m.sign(),
    "floor": lambda t: t.m.floor() + t.m.ceil(),
    "maximum": lambda t: torch.maximum(t.m, t.u) - torch.minimum(t.m, t.u),
    "max-other": lambda t: torch.max(t.z, torch.zeros_like(t.z)),
    "softplus": lambda t: F.softplus(t.m),
    "addcmul": lambda t: torch.addcmul(t.m, t.m, t.u, value=0.5) + torch.addcdiv(t.m, t.m, t.u),
    "where": lambda t: torch.where(t.t, t.m, t.u),
    "where-number": lambda t: torch.where(t.t, t.m, -INF),
    "where-numbers": lambda t: torch.where(t.t, 0.0, -1e4),
    "masked-fill": lambda t: t.m.masked_fill(t.t, -INF),
    "masked-fill-tensor": lambda t: t.m.masked_fill(t.t, t.u[2]),
    "clamp": lambda t: t.m.clamp(-0.3, 0.5) + t.m.clamp(min=0.1) + t.m.clamp(max=0.2),
    "clamp-tensor": lambda t: torch.clamp(t.m, min=t.u),
    "clamp-min": lambda t: torch.clamp_min(t.m, 0.25) + torch.clamp_max(t.m, 0.25),
    "hardtanh": lambda t: F.hardtanh(t.m, -0.4, 0.7),
    "isnan": lambda t: torch.isnan(t.m.log()) | torch.isinf(t.m / 0),
    "nan-to-num-guard": lambda t: torch.nan_to_num(t.m.log(), nan=0.0, posinf=INF, neginf=-INF),
    "nan-to-num": lambda t: torch.nan_to_num(t.m.log() / t.z) + torch.nan_to_num(t.u / 0, 0.5, posinf=2.0),
    "compare": lambda t: (t.m <= t.u) & (t.m < 0.5) | (t.m >= 1) ^ (t.m > t.u),
    "compare-whole": lambda t: (t.z == 2) | (t.z != t.z[0]),
    "logical": lambda t: (
        torch.logical_and(t.z, t.t) | torch.logical_or(t.t, t.m) ^ torch.logical_xor(t.t, t.z)
    ),
    "logical-not": lambda t: torch.logical_not(t.z) & ~t.t,
    "cast": lambda t: t.m.to(torch.int64) + t.t.to(torch.int64),
    "cast-truth": lambda t: t.z.bool(),
    "cast-same": lambda t: t.m.to(torch.float64),
    "type-as": lambda t: t.t.type_as(t.m),
    "clone": lambda t: t.m.t().contiguous().clone().detach(),
    "dropout-evaluated": lambda t: F.dropout(t.m, 0.5, training=False),
    "dropout-nothing": lambda t: F.dropout(t.m, 0.0, training=True),
}

VIEWS: dict[str, Case] = {
    "view": lambda t: t.q.view(2, 6, 20),
    "reshape-infer": lambda t: t.q.reshape(-1, 4, 3),
    "flatten": lambda t: t.q.flatten(1, 2),
    "unflatten": lambda t: t.a.unflatten(-1, (2, 3)),
    "squeeze": lambda t: (
        t.m[None, :, None].squeeze() + t.m[None].squeeze(0) + t.m[None, None].squeeze((0, 1))
    ),
    "unsqueeze": lambda t: t.m.unsqueeze(-1).unsqueeze(0),
    "transpose": lambda t: t.q.transpose(-1, 1),
    "permute": lambda t: t.q.permute(2, 0, -1, 1),
    "matrix-transpose": lambda t: (
        t.q.mT @ t.q + (t.m.t() @ t.m)[:4, :4] + t.m[:, :4].T + t.m[:, :4].adjoint()
    ),
    "movedim": lambda t: t.q.movedim(1, -1),
    "movedim-several": lambda t: t.q.movedim((0, 3), (2, 0)),
    "swapaxes": lambda t: t.q.swapaxes(0, 2),
    "expand": lambda t: t.u.expand(3, -1),
    "expand-as": lambda t: t.u[None].expand_as(t.m),
    "select": lambda t: t.q[:, 1] + t.q[:, -2],
    "slice": lambda t: t.q[:, :, 1:4],
    "slice-from-the-end": lambda t: t.q[:, :, -2:] + t.q[:, :, :-3],
    "slice-too-far": lambda t: t.q[:, :, -100:] + t.q[:, :, :100],
    "slice-step": lambda t: t.q[:, 1::2, 0:5:2],
    "slice-none": lambda t: t.q[..., 2:2],
    "narrow": lambda t: t.q.narrow(2, 1, 3),
    "narrow-from-the-end": lambda t: t.q.narrow(2, -3, 2),
    "split": lambda t: t.a.split(4, -1)[1] + t.a.split(4, -1)[0][..., :2],
    "split-sizes": lambda t: t.a.split([1, 3, 2], -1)[1],
    "chunk": lambda t: t.k.chunk(3, 2)[2] + t.k.chunk(3, 2)[0][:, :, :1],
    "unbind": lambda t: t.m.unbind(0)[1] - t.m.unbind(0)[3],
    "cat": lambda t: torch.cat([t.k, t.k[:, :, :2], t.q], -2),
    "cat-empty": lambda t: torch.cat([torch.zeros(0, dtype=torch.float64), t.u]),
    "stack": lambda t: torch.stack([t.m, t.m + 1], 1),
    "stack-last": lambda t: torch.stack([t.m, -t.m], -1).flatten(-2),
    "repeat": lambda t: t.m.repeat(2, 3),
    "repeat-more-axes": lambda t: t.m.repeat(3, 1, 2),
    "repeat-one": lambda t: t.m[None].repeat(5, 1, 1),
    "tile": lambda t: t.q.tile(2, 1),
    "repeat-interleave": lambda t: t.kg.repeat_interleave(3, 1),
    "repeat-interleave-flat": lambda t: t.m.repeat_interleave(2),
    "roll": lambda t: t.q.roll((1, -2), (1, 2)),
    "roll-around": lambda t: t.q.roll(12, 1),
    "flip": lambda t: t.q.flip(1, -1),
    "pad": lambda t: F.pad(t.m, (1, 2, 3, 0), value=-1.5),
    "pad-cut": lambda t: F.pad(t.m, (-1, 2)),
    "windows": lambda t: t.a.unfold(1, 3, 2),
    "windows-2d": lambda t: F.unfold(t.q, (3, 2)),
    "windows-2d-spaced": lambda t: F.unfold(t.q, (2, 3), dilation=(2, 1), padding=(1, 2), stride=(2, 3)),
    "windows-2d-of-one": lambda t: F.unfold(t.q, 1, stride=2) + F.unfold(t.q, 1, padding=1)[..., :6],
    "windows-2d-whole": lambda t: F.unfold(t.q[0], (5, 4)),
    "diff": lambda t: t.a.diff(dim=1),
    "diff-ends": lambda t: torch.diff(t.a, prepend=t.a[:, -1:], append=t.a[:, :2], dim=1),
    "diff-truths": lambda t: torch.diff(t.t, dim=-1),
    "slice-scatter": lambda t: torch.slice_scatter(t.m, t.m[:, :2] * 2, 1, 3, 5),
    "select-scatter": lambda t: torch.select_scatter(t.m, t.u, 0, 2),
    "tril": lambda t: t.q.tril(-1) + t.q.triu(1),
    "tril-truths": lambda t: t.t.tril(),
}

INDEXING: dict[str, Case] = {
    "arange": lambda t: torch.arange(7) + torch.arange(2, 9) + torch.arange(1, 20, 3),
    "arange-down": lambda t: torch.arange(5, -3, -2),
    "arange-float": lambda t: (
        torch.arange(0, 4, 1, dtype=torch.float64) + torch.arange(0, 2, 0.5, dtype=torch.float64)
    ),
    "full": lambda t: torch.full((2, 3), -INF, dtype=torch.float64) + torch.full_like(t.m[:2, :3], 2),
    "zeros": lambda t: torch.zeros(3, dtype=torch.float64) + torch.ones(2, 3, dtype=torch.float64),
    "new": lambda t: (
        t.m.new_zeros(3) + t.m.new_ones(3) + t.m.new_full((3,), 0.5) + torch.zeros_like(t.m[0, :3])
    ),
    "truths": lambda t: torch.ones(3, dtype=torch.bool) & torch.full((3,), True),
    "scalar-tensor": lambda t: t.m + torch.scalar_tensor(2.5, dtype=torch.float64),
    "lifted": lambda t: t.m + torch.tensor([1.0, 2, 3, 4, 5, 6], dtype=torch.float64),
    "eye": lambda t: torch.eye(3, dtype=torch.float64) + torch.eye(3, dtype=torch.float64),
    "embedding": lambda t: F.embedding(t.ids, t.e),
    "index-select": lambda t: t.m.index_select(1, t.j),
    "index-one": lambda t: t.m[:, t.j],
    "index-one-2d": lambda t: t.e[t.ids],
    "index-negative": lambda t: t.n[:, t.z],
    "index-list": lambda t: t.m[[0, -1, 2]],
    "index-apart": lambda t: t.m[torch.arange(4)[:, None], t.j],
    "index-apart-far": lambda t: t.q[torch.arange(2)[:, None], :, t.j[None, :] % 5],
    "index-apart-middle": lambda t: t.q[:, t.j[:, None], torch.arange(5)[None]],
    "index-apart-turned": lambda t: t.m[t.j % 4, torch.arange(6)[:, None]],
    "index-together": lambda t: t.m[t.j % 4, t.j],
    "index-together-far": lambda t: t.q[t.j % 2, :, t.j % 5],
    "index-together-broadcast": lambda t: t.q[:, t.j, t.z[:3, :3] % 5, t.j % 4],
    "index-mask": lambda t: t.pad[positions(t)[0], positions(t)[2][..., :5]],
    "cumsum-of-ones": lambda t: torch.ones(2, 5, 3, dtype=torch.int64).cumsum(1),
}

CONTRACTIONS: dict[str, Case] = {
    "matmul": lambda t: t.q @ t.k.transpose(-1, -2),
    "matmul-broadcast": lambda t: t.q @ t.m,
    "matmul-vectors": lambda t: (t.m @ t.u)[None] * torch.dot(t.u, t.u) + t.u @ t.n[:, :4],
    "mm": lambda t: torch.mm(t.m, t.n) + torch.outer(t.m[:, 0], t.n[0]),
    "mv": lambda t: torch.mv(t.m, t.u),
    "bmm": lambda t: torch.bmm(t.a, t.a.transpose(1, 2)),
    "addmm": lambda t: torch.addmm(t.n[0], t.m, t.n, beta=0.5, alpha=2),
    "addmm-no-beta": lambda t: torch.addmm(t.n[0], t.m, t.n, beta=0),
    "baddbmm": lambda t: torch.baddbmm(t.a[:, :, :5], t.a, t.a.transpose(1, 2), beta=0, alpha=0.25),
    "addbmm": lambda t: torch.addbmm(t.a[0, :, :5], t.a, t.a.transpose(1, 2), alpha=0.25),
    "linear": lambda t: F.linear(t.a, t.e, t.n[0]),
    "linear-no-bias": lambda t: F.linear(t.u, t.m),
    "einsum": lambda t: torch.einsum("bhid, bhjd -> bhij", t.q, t.k),
    "einsum-ellipsis": lambda t: torch.einsum("...id,...jd->...ij", t.q, t.k),
    "einsum-ellipsis-mixed": lambda t: torch.einsum("b...d,de->...eb", t.q, t.m),
    "einsum-implicit": lambda t: torch.einsum("ab,bc", t.m, t.n),
    "einsum-three": lambda t: torch.einsum("bid,de,bjd->bije", t.a, t.n, t.a),
    "tensordot": lambda t: torch.tensordot(t.q, t.k, dims=([3, 1], [3, 1])),
    "conv-1d": lambda t: F.conv1d(t.a.transpose(1, 2), t.e[..., None], t.n[0]),
    "conv-2d": lambda t: F.conv2d(t.q, t.e[..., None, None]),
    "sum": lambda t: t.q.sum(-1) + t.q.sum((0, 3), keepdim=True)[..., 0] + t.q.sum(),
    "sum-truths": lambda t: t.t.sum(-1),
    "mean": lambda t: t.q.mean((1, -1)) + t.q.mean(),
    "amax": lambda t: t.q.amax(-1) - t.q.amin(-1) + t.q.amax((1, 3), keepdim=True)[..., 0],
    "max": lambda t: t.q.max() + t.q.max(-1).values - t.q.min(-1, keepdim=True).values[..., 0],
    "logsumexp": lambda t: t.q.logsumexp(-1) + t.q.logsumexp((1, 2, 3), keepdim=True)[..., 0],
    "any": lambda t: t.t.any(-1) | t.t.all(-1) | t.z.any(1),
    "norm": lambda t: F.normalize(t.q, dim=-1),
    "softmax": lambda t: t.q.softmax(-1) + t.q.softmax(1),
    "log-softmax": lambda t: t.q.log_softmax(-2),
    "softmax-cast": lambda t: F.softmax(t.m, dim=-1, dtype=torch.float32),
    "safe-softmax": lambda t: torch._safe_softmax(torch.where(t.visible, t.q @ t.k.mT, -INF), -1),
}

ATTENTION: dict[str, Case] = {
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

FAMILIES = {
    "pointwise": POINTWISE,
    "views": VIEWS,
    "indexing": INDEXING,
    "contractions": CONTRACTIONS,
    "attention": ATTENTION,
}

DYNAMIC: dict[str, Case] = {
    "heads": lambda t: t.a.view(t.a.shape[0], -1, 2, 3).transpose(1, 2).reshape(t.a.shape[0] * 2, -1, 3),
    "merge": lambda t: t.q.transpose(1, 2).reshape(t.q.shape[0], -1, 24),
    "rows": lambda t: t.a.reshape(-1, 6) @ t.n,
    "drop-last": lambda t: t.q[:, :, :-1] + t.q[:, :, 1:],
    "last": lambda t: t.a[:, -1] + t.a[:, -2:-1][:, 0],
    "append": lambda t: torch.cat([t.k, t.q], 2)[:, :, t.k.shape[2] :],
    "prefix": lambda t: torch.cat([t.e[:1].expand(t.a.shape[0], 1, -1), t.a], 1)[:, :-1],
    "repeat-kv": lambda t: t.kg[:, :, None].expand(-1, 2, 3, -1, -1).reshape(t.kg.shape[0], 6, -1, 4),
    "sum-mean": lambda t: t.q.mean(2) + t.q.sum(2) / t.q.shape[2],
    "scale-by-length": lambda t: t.q * t.k.shape[2] + math.pi * (t.q.shape[2] + 1),
    "arange": lambda t: torch.arange(1, t.q.shape[2] + 1) * 2,
    "full": lambda t: torch.full((t.q.shape[2], t.k.shape[2]), -INF).triu(1),
    "causal": lambda t: torch.arange(t.k.shape[2])[None] <= torch.arange(t.q.shape[2])[:, None],
    "padding": lambda t: t.pad[positions(t)[0], positions(t)[1]],
    "packed": lambda t: packed(t)[:, None] == packed(t)[:, :, None],
    "flip": lambda t: t.q.flip(2),
    "pad": lambda t: F.pad(t.a, (0, 0, 2, 1)),
    "windows-2d": lambda t: F.unfold(t.q, (3, 1), padding=(1, 0)),
    "repeat": lambda t: t.e[0].repeat(t.a.shape[0], t.a.shape[1], 1),
    "attention": lambda t: F.scaled_dot_product_attention(t.q, t.k, t.v, attn_mask=t.visible),
    "attention-causal": lambda t: F.scaled_dot_product_attention(t.q, t.q, t.q, is_causal=True),
    "attention-grouped": lambda t: F.scaled_dot_product_attention(t.q, t.kg, t.vg, enable_gqa=True),
}


class Many(torch.nn.Module):
    """All cases of a family in one graph: one output each."""

    def __init__(self, cases: Mapping[str, Case]) -> None:
        super().__init__()
        self.cases = cases

    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        t = SimpleNamespace(**dict(zip(tensors(), given, strict=True)))
        return tuple(case(t) for case in self.cases.values())


@cache
def program(family: str, core: bool) -> FxProgram:
    captured = trace(Many(FAMILIES[family]).eval(), tuple(tensors().values()))
    return FxProgram(captured.exported.run_decompositions(), family) if core else captured


@cache
def dynamic_program() -> FxProgram:
    batch, queries, keys = Dim("batch", min=2), Dim("queries", min=3), Dim("keys", min=3)
    axes: dict[str, dict[int, Any]] = {
        "q": {0: batch, 2: queries},
        **{name: {0: batch, 2: keys} for name in ("k", "v", "kg", "vg")},
        **{name: {0: batch, 1: queries} for name in ("a", "ids", "pad")},
        "visible": {0: batch, 2: queries, 3: keys},
    }
    given = tensors()
    shapes = (tuple(axes.get(name, {}) for name in given),)
    return trace(Many(DYNAMIC).eval(), tuple(given.values()), dynamic_shapes=shapes)


def arrays(captured: FxProgram, given: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: x.numpy() for name, x in zip(captured.graph.inputs, given.values(), strict=True)}


def leaves(prim: Prim) -> set[str]:
    """Why each leaf behind a form that is not an input is one."""
    found, seen, stack = set(), set(), [prim]
    while stack:
        at = stack.pop()
        if at in seen:
            continue
        seen.add(at)
        stack.extend(at.inputs)
        if isinstance(at.form, Leaf):
            found.add(at.form.why)
    return found - {"input"}


def agree(got: np.ndarray, want: torch.Tensor) -> None:
    assert got.shape == tuple(want.shape)
    tolerance = 1e-6 if want.dtype == torch.float32 else 1e-9
    np.testing.assert_allclose(got.astype(np.float64), want.double().numpy(), tolerance, tolerance)


ALL = [(family, case) for family, cases in FAMILIES.items() for case in cases]


@pytest.mark.parametrize(("family", "case"), ALL, ids=[f"{f}-{c}" for f, c in ALL])
def test_operator(family: str, case: str) -> None:
    captured, given = program(family, False), tensors()
    output = captured.graph.outputs[list(FAMILIES[family]).index(case)]
    form = captured.prims()[output]
    assert leaves(form) == set()
    (got,) = evaluate([form], arrays(captured, given))
    agree(got, FAMILIES[family][case](SimpleNamespace(**given)))


@pytest.mark.parametrize(("family", "case"), ALL, ids=[f"{f}-{c}" for f, c in ALL])
def test_operator_in_core_operators(family: str, case: str) -> None:
    captured, given = program(family, True), tensors()
    output = captured.graph.outputs[list(FAMILIES[family]).index(case)]
    form = captured.prims()[output]
    assert leaves(form) == set()
    (got,) = evaluate([form], arrays(captured, given))
    agree(got, FAMILIES[family][case](SimpleNamespace(**given)))


@pytest.mark.parametrize("case", DYNAMIC)
@pytest.mark.parametrize("sizes", [(2, 5, 7), (3, 8, 4)])
def test_operator_at_dynamic_sizes(case: str, sizes: tuple[int, int, int]) -> None:
    captured, given = dynamic_program(), tensors(*sizes)
    form = captured.prims()[captured.graph.outputs[list(DYNAMIC).index(case)]]
    assert leaves(form) == set()
    known = arrays(captured, given)
    (got,) = evaluate([form], known, bind(captured.prims().values(), known))
    agree(got, DYNAMIC[case](SimpleNamespace(**given)))


# what must stay opaque, and what must not


def form_of(function: Callable[..., Any], *given: torch.Tensor) -> tuple[Prim, FxProgram]:
    """Return the form of the (first) result of a function."""

    class Module(torch.nn.Module):
        def forward(self, *args: torch.Tensor) -> Any:
            return function(*args)

    captured = trace(Module(), given)
    return captured.prims()[captured.graph.outputs[0]], captured


X = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
OPAQUE: dict[str, Callable[[torch.Tensor], Any]] = {
    "dropout": lambda x: F.dropout(x, 0.5, training=True),
    "layer_norm": lambda x: F.layer_norm(x, (5,)),
    "cumsum": lambda x: x.cumsum(-1),
    "gather": lambda x: torch.gather(x, 1, (x > 0).long()),
    "topk": lambda x: x.topk(2).values,
    "__and__": lambda x: x.long() & 3,
    "div": lambda x: torch.div(x.long(), 3, rounding_mode="trunc"),
    "view": lambda x: x.view(torch.int64),
    "scaled_dot_product_attention": lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1),
    "conv1d": lambda x: F.conv1d(x[None], x[:2, :3, None].expand(2, 3, 3)),
    "einsum": lambda x: torch.einsum("iij->ij", x[None].expand(3, 3, 5)),
    "rand_like": lambda x: torch.rand_like(x),
}


@pytest.mark.parametrize("name", OPAQUE)
def test_stays_a_leaf(name: str) -> None:
    form, _ = form_of(OPAQUE[name], X)
    reasons = leaves(form)
    assert len(reasons) == 1
    assert name in reasons.pop()


def test_every_value_has_a_form_of_its_name_and_shape() -> None:
    for family in FAMILIES:
        captured = program(family, core=False)
        forms = captured.prims()
        for name, value in captured.graph.values.items():
            if value.shape is not None:
                assert forms[name].value == name
                assert (forms[name].shape, forms[name].dtype) == (value.shape, value.dtype)


def test_exotic_operators_on_constants_are_constants() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        table = torch.arange(12.0, dtype=torch.float64).reshape(3, 4)
        sorted_: torch.Tensor = torch.linalg.matrix_exp(table.T @ table / 100).sort(dim=-1).values
        return x + sorted_.cumsum(0)[0, 0]

    form, _ = form_of(function, X)
    assert leaves(form) == set()
    (got,) = evaluate([form], {"args_0": X.numpy()})
    agree(got, function(X))


def test_constants_are_computed_in_float64() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return x + F.layer_norm(torch.arange(5, dtype=torch.float32), (5,)) / 3

    form, _ = form_of(function, X)
    (got,) = evaluate([form], {"args_0": X.numpy()})
    normal = F.layer_norm(torch.arange(5, dtype=torch.float64), (5,))
    np.testing.assert_allclose(got, (X + normal / 3).numpy(), rtol=1e-13)


def test_random_numbers_are_no_constants() -> None:
    form, _ = form_of(
        lambda x: x + torch.rand(5, dtype=torch.float64) + torch.empty(5, dtype=torch.float64), X
    )
    assert leaves(form) == {"rand.default", "empty.memory_format"}


def test_dynamic_sizes_are_no_constants() -> None:
    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.arange(x.shape[1], dtype=torch.float64).cumsum(0)

    captured = trace(Module(), (X,), dynamic_shapes=({1: Dim("n", min=2)},))
    assert leaves(captured.prims()[captured.graph.outputs[0]]) == {"cumsum.default"}


def behind(form: Prim, kind: type) -> list[Any]:
    """Forms of one kind behind a form."""
    found, seen, stack = [], set(), [form]
    while stack:
        at = stack.pop()
        if at not in seen:
            seen.add(at)
            stack.extend(at.inputs)
            if isinstance(at.form, kind):
                found.append(at)
    return found


def test_packed_sequences_of_plain_positions_hide_nothing() -> None:
    captured = dynamic_program()
    form = captured.prims()[captured.graph.outputs[list(DYNAMIC).index("packed")]]
    assert all(isinstance(at.form, Constant) and not at.shape for at in behind(form, Constant))
    assert not behind(form, Map) and not behind(form, Iota)


def test_causality_stays_a_comparison_of_positions() -> None:
    captured = dynamic_program()
    form = captured.prims()[captured.graph.outputs[list(DYNAMIC).index("causal")]]
    assert form.form == Map("le")
    assert len(behind(form, Iota)) == 2


def test_padding_is_read_at_positions() -> None:
    captured = dynamic_program()
    form = captured.prims()[captured.graph.outputs[list(DYNAMIC).index("padding")]]
    gathers = behind(form, Gather)
    assert len(gathers) == 2
    assert all(behind(at.inputs[1], Iota) for at in gathers)
    assert {at.value for at in behind(form, Leaf)} == {captured.graph.inputs[list(tensors()).index("pad")]}


@pytest.mark.parametrize(
    ("case", "guarded"), [("plain", False), ("causal", False), ("mask", True), ("bias", True)]
)
def test_empty_rows_are_guarded_where_there_is_a_mask(case: str, guarded: bool) -> None:
    captured = program("attention", core=False)
    form = captured.prims()[captured.graph.outputs[list(ATTENTION).index(case)]]
    assert isinstance(form.form, Einsum)
    weights = form.inputs[0]
    if guarded:
        assert weights.form == Map("where")
        condition, zero, weights = weights.inputs
        assert condition.form == Map("isnan")
        assert condition.inputs == (weights,)
        assert isinstance(zero.form, Constant) and float(zero.form.load()) == 0
    assert isinstance(weights.form, Softmax)


def test_guard_of_a_decomposed_safe_softmax_is_recognised() -> None:
    captured = program("contractions", core=True)
    form = captured.prims()[captured.graph.outputs[list(CONTRACTIONS).index("safe-softmax")]]
    assert form.form == Map("where")
    assert form.inputs[0].form == Map("isnan")


def test_sizes_are_polynomials() -> None:
    captured = dynamic_program()
    forms = captured.prims()
    length = forms[captured.graph.inputs[0]].shape[2]
    form = forms[captured.graph.outputs[list(DYNAMIC).index("drop-last")]]
    assert form.shape[2] == length - 1
    merged = forms[captured.graph.outputs[list(DYNAMIC).index("heads")]]
    assert merged.shape[0] == 2 * forms[captured.graph.inputs[0]].shape[0]
    assert all(isinstance(n, Size) for n in form.shape)


# a decoder as transformers spells it


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


# the module itself


def test_needs_no_torch_to_be_imported() -> None:
    code = "import sys, rewriter.algebra.frontends.aten; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_long_graphs_take_little_time_and_no_recursion() -> None:
    native = torch.fx.Graph()
    x = native.placeholder("x")
    steps: list[Node] = []
    shape = (Size.symbol("n"), Size.of(5))
    values = {"x": Value("x", shape, "float32")}
    for k in range(20_000):
        target = (ops.mul.Tensor, ops.view.default, ops.add.Tensor, ops.tanh.default)[k % 4]
        arguments = ((x, 0.5), (x, [-1, 5]), (x, x), (x,))[k % 4]
        before, x = x, native.call_function(target, arguments)
        values[x.name] = Value(x.name, shape, "float32")
        steps.append(Node(x.name, str(target).replace(".", "::", 1), (before.name,), (x.name,), x))
    graph = Graph(tuple(steps), values, ("x",), (x.name,))
    start = time.process_time()
    forms = translate(graph)
    assert time.process_time() - start < 3  # half a second on an idle core
    assert len(forms) == len(values)
    assert leaves(forms[x.name]) == set()
