"""Made and looked-up entries of torch.export graphs, against torch itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.algebra.frontends.aten.family import INF, Family, check_operator, positions

INDEXING = Family(
    {
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
)


@pytest.mark.parametrize("core", [False, True], ids=["captured", "core"])
@pytest.mark.parametrize("case", INDEXING.cases)
def test_operator(case: str, core: bool) -> None:
    check_operator(INDEXING, case, core)
