"""Pointwise operators of torch.export graphs, against torch itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.algebra.frontends.aten.family import INF, Family, check_operator

POINTWISE = Family(
    {
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
        "lerp": lambda t: torch.lerp(t.m, t.m * t.u, t.u) + torch.lerp(t.m, t.u, 0.25),
        "addcmul": lambda t: torch.addcmul(t.m, t.m, t.u, value=0.5) + torch.addcdiv(t.m, t.m, t.u),
        "where": lambda t: torch.where(t.t, t.m, t.u),
        "where-number": lambda t: torch.where(t.t, t.m, -INF),
        "where-numbers": lambda t: torch.where(t.t, 0.0, -1e4),
        "masked-fill": lambda t: t.m.masked_fill(t.t, -INF),
        "masked-fill-tensor": lambda t: t.m.masked_fill(t.t, t.u[2]),
        "clamp": lambda t: t.m.clamp(-0.3, 0.5) + t.m.clamp(min=0.1) + t.m.clamp(max=0.2),
        "clamp-tensor": lambda t: torch.clamp(t.m, min=t.u),
        "clamp-min": lambda t: torch.clamp_min(t.m, 0.25) + torch.clamp_max(t.m, 0.25),
        "silu": lambda t: F.silu(t.m),
        "hardsigmoid": lambda t: F.hardsigmoid(t.m * 9),
        "hardswish": lambda t: F.hardswish(t.m * 9),
        "hardtanh": lambda t: F.hardtanh(t.m, -0.4, 0.7),
        "isnan": lambda t: torch.isnan(t.m.log()) | torch.isinf(t.m / 0),
        "nan-to-num-guard": lambda t: torch.nan_to_num(t.m.log(), nan=0.0, posinf=INF, neginf=-INF),
        "nan-to-num": lambda t: (
            torch.nan_to_num(t.m.log() / t.z) + torch.nan_to_num(t.u / 0, 0.5, posinf=2.0)
        ),
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
)


@pytest.mark.parametrize("core", [False, True], ids=["captured", "core"])
@pytest.mark.parametrize("case", POINTWISE.cases)
def test_operator(case: str, core: bool) -> None:
    check_operator(POINTWISE, case, core)
