from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rewriter
from rewriter.algebra.sizes import Size


class Sized(nn.Module):
    """Attention with a bias whose sides are read out of a tensor."""

    sides: Tensor

    def __init__(self, sides: Tensor) -> None:
        super().__init__()
        self.register_buffer("sides", sides)

    def bias(self, rows: Any, columns: Any) -> Tensor:
        return (torch.arange(rows * columns) / 7).view(24)

    def forward(self, x: Tensor, sides: Tensor | None = None) -> Tensor:
        rows, columns = (self.sides * 2 if sides is None else sides).unbind()
        bias = self.bias(rows.item(), columns.item())
        return (x @ x.transpose(-1, -2) + bias).softmax(-1) @ x


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 24, 8)


def test_numbers_of_constants_are_known(x: Tensor) -> None:
    program = rewriter.trace(Sized(torch.tensor([2, 3])), (x,))
    assert sorted(map(int, program.graph.numbers.values())) == [4, 6]
    assert all(v.shape is None or all(n.static for n in v.shape) for v in program.graph.values.values())
    (site,) = program.sites
    assert (site.queries, site.facts.mask) == (Size.of(24), "bias")


def test_numbers_of_inputs_are_not(x: Tensor) -> None:
    program = rewriter.trace(Sized(torch.tensor([2, 3])), (x, torch.tensor([4, 6])))
    assert not program.graph.numbers


def test_a_rewrite_of_such_a_program_is_verified(x: Tensor) -> None:
    program = rewriter.trace(Sized(torch.tensor([2, 3])), (x,))
    softmax = rewriter.passes.SoftmaxAttention()
    rewritten = softmax(program)
    assert softmax.report is not None
    assert [site.reason for site in softmax.report.sites] == [None]
    (found,), (expected,) = rewritten.run(x), program.run(x)
    torch.testing.assert_close(found, expected)
