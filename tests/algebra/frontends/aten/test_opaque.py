"""What stays opaque in torch.export graphs, what is constant, and what is neither."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim

from rewriter.algebra.evaluate import evaluate
from rewriter.algebra.prims import Prim
from rewriter.program.fx import FxProgram, trace
from tests.algebra.frontends.aten.family import agree, leaves


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
