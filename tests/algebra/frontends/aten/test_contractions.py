"""Contractions, reductions and softmax of torch.export graphs, against torch itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rewriter.algebra.prims import Map
from tests.algebra.frontends.aten.family import INF, Family, check_operator

CONTRACTIONS = Family(
    {
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
)


@pytest.mark.parametrize("core", [False, True], ids=["captured", "core"])
@pytest.mark.parametrize("case", CONTRACTIONS.cases)
def test_operator(case: str, core: bool) -> None:
    check_operator(CONTRACTIONS, case, core)


def test_guard_of_a_decomposed_safe_softmax_is_recognised() -> None:
    form = CONTRACTIONS.form("safe-softmax", core=True)
    assert form.form == Map("where")
    assert form.inputs[0].form == Map("isnan")
