"""Variances and standard deviations of torch.export graphs, against torch itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import rewriter
from rewriter.algebra.evaluate import evaluate
from tests.algebra.frontends.aten.family import Family, agree, check_operator, leaves
from tests.algebra.frontends.aten.test_opaque import form_of

MOMENTS = Family(
    {
        "of everything": lambda t: t.q.var(),
        "of everything, unbiased or not": lambda t: t.q.std(False),
        "of an axis": lambda t: t.q.var(-1),
        "of an axis, biased": lambda t: t.q.var(1, unbiased=False, keepdim=True),
        "of several axes": lambda t: t.q.std((1, -1), False),
        "of all axes": lambda t: t.q.var(dim=None, correction=0, keepdim=True),
        "two are taken off": lambda t: t.q.std(2, correction=2),
        "nothing is said": lambda t: torch.var(t.a, dim=(0, 1), correction=None),
        "with its mean": lambda t: torch.add(*torch.var_mean(t.q, (1, 3), correction=0)),
        "a root with its mean": lambda t: torch.sub(*torch.std_mean(t.q, 2, keepdim=True)),
        "all with its mean": lambda t: torch.mul(*torch.std_mean(t.a)),
    }
)


@pytest.mark.parametrize("core", [False, True], ids=["as captured", "core"])
@pytest.mark.parametrize("case", MOMENTS.cases)
def test_a_variance_is_a_mean_of_squares(case: str, core: bool) -> None:
    check_operator(MOMENTS, case, core)


X = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
OPAQUE: dict[str, Callable[[Tensor], Tensor]] = {
    "as many taken off as there are": lambda x: x.var(1, correction=3),
    "half of one taken off": lambda x: x.var(1, correction=0.5),
    "one entry": lambda x: x[:1].var(0),
}


@pytest.mark.parametrize("name", OPAQUE)
def test_other_variances_stay_leaves(name: str) -> None:
    assert leaves(form_of(OPAQUE[name], X)[0])


def test_dynamic_sizes() -> None:
    class Spread(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.var((1, 2), keepdim=True) + x.std(1, unbiased=False, keepdim=True)

    program = rewriter.trace(Spread(), (X,), dynamic_shapes={"x": {1: Dim("n", min=2), 2: Dim("m", min=2)}})
    form = program.prims()[program.graph.outputs[0]]
    assert leaves(form) == set()
    for given in (X, X[:, :2], X[:, 1:, :2]):
        (got,) = evaluate([form], {program.graph.inputs[0]: given.numpy()})
        agree(got, Spread()(given))
