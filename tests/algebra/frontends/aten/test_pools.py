"""Pools of torch.export graphs whose windows are whole axes, against torch itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

import rewriter
from rewriter.algebra.evaluate import evaluate
from tests.algebra.frontends.aten.family import Family, agree, check_operator, leaves
from tests.algebra.frontends.aten.test_opaque import form_of

POOLS = Family(
    {
        "adaptive mean": lambda t: F.adaptive_avg_pool2d(t.q, 1),
        "adaptive mean of rows": lambda t: F.adaptive_avg_pool2d(t.q, (None, 1)),
        "adaptive mean of columns": lambda t: F.adaptive_avg_pool2d(t.q, (1, 4)),
        "adaptive mean of tokens": lambda t: F.adaptive_avg_pool1d(t.a.transpose(1, 2), 1),
        "adaptive mean of a volume": lambda t: F.adaptive_avg_pool3d(t.q, (1, 5, 1)),
        "adaptive maximum": lambda t: F.adaptive_max_pool2d(t.q, 1),
        "adaptive maximum of tokens": lambda t: F.adaptive_max_pool1d(t.a, 1),
        "mean of windows": lambda t: F.avg_pool2d(t.q, (5, 4)),
        "mean of windows, rounded up": lambda t: F.avg_pool2d(t.q, (5, 4), 2, ceil_mode=True),
        "mean of rows": lambda t: F.avg_pool2d(t.q, (1, 4), (1, 4)),
        "maximum of windows": lambda t: F.max_pool2d(t.q, (5, 4)),
        "maximum of columns": lambda t: F.max_pool2d(t.q, (5, 1), 1),
        "maximum and its place": lambda t: F.max_pool2d(t.q, (5, 4), return_indices=True)[0],
    }
)


@pytest.mark.parametrize("case", POOLS.cases)
def test_a_window_that_is_a_whole_axis_is_a_reduction(case: str) -> None:
    check_operator(POOLS, case, core=False)


X = torch.randn(2, 3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
OPAQUE: dict[str, Callable[[Tensor], Tensor]] = {
    "windows": lambda x: F.avg_pool2d(x, 2),
    "places that are left out": lambda x: F.max_pool2d(x, (4, 1), (1, 2)),
    "padding": lambda x: F.avg_pool2d(x, (4, 6), padding=(2, 3)),
    "another divisor": lambda x: F.avg_pool2d(x, (4, 6), divisor_override=7),
    "dilation": lambda x: F.max_pool2d(x, (2, 6), (1, 6), dilation=(3, 1)),
    "a coarser grid": lambda x: F.adaptive_avg_pool2d(x, (2, 1)),
    "nothing is pooled": lambda x: F.max_pool2d(x, 1),
}


@pytest.mark.parametrize("name", OPAQUE)
def test_other_windows_stay_leaves(name: str) -> None:
    assert leaves(form_of(OPAQUE[name], X)[0])


def test_dynamic_sizes() -> None:
    class Pooled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.adaptive_avg_pool2d(x, (None, 1)) - F.adaptive_max_pool2d(x, 1)

    shapes = {"x": {2: Dim("h", min=2), 3: Dim("w", min=2)}}
    program = rewriter.trace(Pooled(), (X,), dynamic_shapes=shapes)
    form = program.prims()[program.graph.outputs[0]]
    assert leaves(form) == set()
    for given in (X, X[..., :3], X[..., :2, :]):
        (got,) = evaluate([form], {program.graph.inputs[0]: given.numpy()})
        agree(got, Pooled()(given))
