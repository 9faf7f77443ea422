"""What a formula fits, however a graph spells it, and what it does not."""

from __future__ import annotations

from collections.abc import Callable
from time import process_time

import pytest
import torch
from torch import Tensor, nn

import rewriter
from rewriter.blocks.find import blocks
from rewriter.program.onnx import OnnxProgram
from rewriter.rules import (
    any_of,
    axis,
    call,
    constant,
    max_,
    maximum,
    mean,
    number,
    rsqrt,
    sigmoid,
    softmax,
    stack,
    sum_,
    tensor,
)
from rewriter.rules.match import Bound, match
from rewriter.rules.pattern import Pattern
from tests.fuzz.hostile_onnx import doubled

X, Y, C, D, E = tensor("x"), tensor("y"), number("c"), axis("d"), axis("e")


class Computed(nn.Module):
    def __init__(self, fn: Callable[..., Tensor]) -> None:
        super().__init__()
        self.fn = fn
        self.weight = nn.Parameter(torch.randn(6))
        self.matrix = nn.Parameter(torch.randn(4, 6))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.fn(self, x, y)


def matched(pattern: Pattern, fn: Callable[..., Tensor], dynamic: bool = False) -> Bound | None:
    shapes = {1: torch.export.Dim("n", min=2, max=64)} if dynamic else None
    given = (torch.randn(2, 5, 6), torch.randn(2, 5, 6))
    program = rewriter.trace(Computed(fn), given, dynamic_shapes={"x": shapes, "y": shapes})
    return match(pattern, program.prims()[program.graph.outputs[0]])


FIRES: list[tuple[str, Pattern, Callable[..., Tensor]]] = [
    ("factors in any order", X * Y * 3, lambda m, x, y: (3 * y) * x),
    ("a quotient is a power", X / Y, lambda m, x, y: (1 / y) * x),
    ("a reciprocal", X / Y, lambda m, x, y: y.reciprocal() * x),
    ("a square", X**2 * Y, lambda m, x, y: x * y * x),
    ("a square that is a power", X**2 + Y, lambda m, x, y: y + x.pow(2)),
    ("a cube", X**3, lambda m, x, y: x * x * x),
    ("terms in any grouping", X + Y + 2, lambda m, x, y: x + 1 + (1 + y)),
    ("a difference", X - Y, lambda m, x, y: -y + x),
    ("a negated difference", X - Y, lambda m, x, y: -(y - x)),
    ("a root", rsqrt(X + C), lambda m, x, y: 1 / (x + 1e-3).sqrt()),
    ("a number of any value", C * X, lambda m, x, y: x / 7),
    ("a mean", mean(X, D), lambda m, x, y: x.mean(-1)),
    ("a mean that is a sum", mean(X, D), lambda m, x, y: x.sum(-1) / 6),
    ("a mean of a product", mean(X * Y, D), lambda m, x, y: (x * y).mean(-1)),
    ("a contraction", sum_(X * Y, D), lambda m, x, y: torch.einsum("bnd,bnd->bn", x, y)),
    ("a product and a sum", sum_(X * Y, D), lambda m, x, y: (x * y).sum(-1)),
    ("a matrix", sum_(X * constant("w"), D), lambda m, x, y: x @ m.matrix.T),
    ("a linear layer", sum_(X * constant("w"), D), lambda m, x, y: nn.functional.linear(x, m.matrix)),
    ("a maximum", max_(X, D), lambda m, x, y: x.amax(-1)),
    ("softmax", softmax(X, D) * Y, lambda m, x, y: x.softmax(-1) * y),
    ("softmax spelled out", softmax(X, D) * Y, lambda m, x, y: y * (x.exp() / x.exp().sum(-1, True))),
    ("sigmoid spelled out", sigmoid(X) * Y, lambda m, x, y: y / (1 + (-x).exp())),
    ("relu is a maximum", maximum(X, 0.0) * Y, lambda m, x, y: x.relu() * y),
    ("views", X * Y, lambda m, x, y: (x.transpose(1, 2) * y.transpose(1, 2)).transpose(1, 2)),
    ("casts", X * Y, lambda m, x, y: (x.double() * y.double()).float()),
    ("the same value computed twice", X**2 * Y, lambda m, x, y: (x + y) * (x + y) * y),
    ("two axes", mean(X, D, E), lambda m, x, y: x.mean((1, 2))),
    ("one name for two axes", mean(X, D), lambda m, x, y: x.mean((1, 2))),
    ("a stack", sum_(stack("x", D), D), lambda m, x, y: torch.stack([x, y], 1).sum(1)),
    ("a sum of what is kept", sum_(X * Y, D, kept=True), lambda m, x, y: (x * y).sum(-1)),
    ("an axis that is cut", mean(X, D), lambda m, x, y: x.reshape(2, 5, 2, 3).mean((2, 3))),
]


@pytest.mark.parametrize(("name", "pattern", "fn"), FIRES, ids=[f[0] for f in FIRES])
def test_fits(name: str, pattern: Pattern, fn: Callable[..., Tensor]) -> None:
    assert matched(pattern, fn) is not None


KEEPS: list[tuple[str, Pattern, Callable[..., Tensor]]] = [
    ("another number", X * Y * 3, lambda m, x, y: 2 * x * y),
    ("another sign", X - Y, lambda m, x, y: x + y),
    ("another exponent", X**2, lambda m, x, y: x * x * x),
    ("another tensor", X**2 * Y, lambda m, x, y: x * (x + 1) * y),
    ("the same tensor at another place", X**2, lambda m, x, y: x * x.flip(1)),
    ("a root of a square is no power", X**2 * Y**2, lambda m, x, y: (x**4).sqrt() * y * y),
    ("a mean over another count", mean(X, D), lambda m, x, y: x.sum(-1) / 5),
    ("a mean of another value", X - mean(X, D), lambda m, x, y: x - y.mean(-1, True)),
    ("a mean over an axis that is another's", X - mean(X, D), lambda m, x, y: x - x.mean(1, True) * 2),
    ("a smaller sum", sum_(X * Y, D), lambda m, x, y: x + y),
    ("softmax over another axis", mean(softmax(X, D), D), lambda m, x, y: x.softmax(1).mean(2)),
    ("no constant", sum_(X * constant("w"), D), lambda m, x, y: torch.einsum("bnd,bmd->bnm", x, y)),
    ("no stack", sum_(stack("x", D), D), lambda m, x, y: x.sum(1)),
    ("a stack along another axis", sum_(stack("x", D), D), lambda m, x, y: torch.stack([x, y], 1).sum(2)),
    ("no stack of one each", sum_(stack("x", D), D), lambda m, x, y: torch.cat([x, y], 1).sum(1)),
    ("a matrix product keeps nothing", sum_(X * Y, D, kept=True), lambda m, x, y: x @ y.transpose(1, 2)),
    ("another function", sigmoid(X) * Y, lambda m, x, y: x.tanh() * y),
    ("a product that is clipped", X * Y, lambda m, x, y: (x * y).relu()),
    ("a cast to whole numbers", X**2, lambda m, x, y: x.int() * x),
]


@pytest.mark.parametrize(("name", "pattern", "fn"), KEEPS, ids=[k[0] for k in KEEPS])
def test_does_not_fit(name: str, pattern: Pattern, fn: Callable[..., Tensor]) -> None:
    assert matched(pattern, fn) is None


def test_dynamic_sizes_are_no_obstacle() -> None:
    centred = X - mean(X, D)
    found = matched(centred, lambda m, x, y: x - x.mean(1, keepdim=True), dynamic=True)
    assert found is not None and [str(a.size) for a in found.atoms("d")] != ["5"]


def test_numbers_and_choices_are_told() -> None:
    pattern = any_of("way", tanh=call("tanh", C * X), sum=X + C)
    found = matched(pattern, lambda m, x, y: x + 3)
    assert found is not None and found.labels == {"way": "sum"} and found.numbers == {"c": 3.0}
    found = matched(pattern, lambda m, x, y: torch.tanh(x * 2))
    assert found is not None and found.labels == {"way": "tanh"} and found.numbers == {"c": 2.0}


def test_a_weight_over_another_axis_is_refused() -> None:
    pattern = mean(X, D) * constant("w", over=(D,))
    assert matched(pattern, lambda m, x, y: x.mean(-1) * m.weight[:5]) is None


def test_two_axes_of_one_size_stay_two() -> None:
    stacked = sum_(stack("x", D), D)
    found = matched(stacked, lambda m, x, y: torch.stack([x, y], 1).sum(1))  # a batch of 2, a stack of 2
    assert found is not None
    assert not set(found.atoms("d")) & set(found.result)


def test_a_product_of_many_sums_is_given_up_soon() -> None:
    start = process_time()
    assert blocks(OnnxProgram(doubled("Mul", 60)))[0] == ()
    assert process_time() - start < 10
