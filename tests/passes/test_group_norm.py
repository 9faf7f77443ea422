"""Norms of groups of channels, and vectors divided by their length: where they fire, and where not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import rewriter
from rewriter.passes import GroupNorm, L2Norm
from rewriter.program.program import Program
from rewriter.rules import Rule, fuse


class Spelled(nn.Module):
    def __init__(self, fn: Callable[[Spelled, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fn, self.weight, self.bias = fn, nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.fn(self, x))


def normal(x: Tensor, *axes: int) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred / torch.sqrt((centred * centred).mean(axes, keepdim=True) + 1e-5)


def column(x: Tensor) -> Tensor:
    return x[:, None, None]


def instance(m: Spelled, x: Tensor) -> Tensor:
    return normal(x, 2, 3) * column(m.weight) + column(m.bias)


def instance_without_bias(m: Spelled, x: Tensor) -> Tensor:
    return column(m.weight) * normal(x, 2, 3)


def grouped(m: Spelled, x: Tensor) -> Tensor:
    return normal(x.reshape(2, 3, 2, 4, 5), 2, 3, 4).reshape(x.shape) * column(m.weight) + column(m.bias)


def flat(m: Spelled, x: Tensor, *shape: int, axis: int = -1, unbiased: bool = False) -> Tensor:
    """Norm of one view, and back."""
    rows = x.reshape(shape)
    centred = rows - rows.mean(axis, keepdim=True)
    made = centred / torch.sqrt(rows.var(axis, unbiased=unbiased, keepdim=True) + 1e-5)
    return made.reshape(x.shape) * column(m.weight) + column(m.bias)


def flat_groups(m: Spelled, x: Tensor) -> Tensor:
    return flat(m, x, x.shape[0], 3, -1)


def flat_instance(m: Spelled, x: Tensor) -> Tensor:
    return flat(m, x, x.shape[0], 6, -1)


def flat_one_group(m: Spelled, x: Tensor) -> Tensor:
    return flat(m, x, x.shape[0], -1)


def flat_of_squares(m: Spelled, x: Tensor) -> Tensor:
    return normal(x.reshape(x.shape[0], 2, -1), -1).reshape(x.shape) * column(m.weight) + column(m.bias)


def one_group(m: Spelled, x: Tensor) -> Tensor:
    return normal(x, 1, 2, 3) * column(m.weight) + column(m.bias)


def by_length(m: Spelled, x: Tensor) -> Tensor:
    return x / x.pow(2).sum(-1, keepdim=True).sqrt()


def by_length_and_a_bit(m: Spelled, x: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).sum(1, keepdim=True) + 1e-6)


FIRES: list[tuple[type[Rule], Callable[[Spelled, Tensor], Tensor]]] = [
    (GroupNorm, instance),
    (GroupNorm, instance_without_bias),
    (GroupNorm, grouped),
    (GroupNorm, one_group),
    (GroupNorm, flat_groups),
    (GroupNorm, flat_instance),
    (GroupNorm, flat_one_group),
    (GroupNorm, flat_of_squares),
    (L2Norm, by_length),
    (L2Norm, by_length_and_a_bit),
]


def weight_of_places(m: Spelled, x: Tensor) -> Tensor:
    return normal(x, 2, 3) * m.weight[:5]


def layer(m: Spelled, x: Tensor) -> Tensor:
    return normal(x, 1) * column(m.weight) + column(m.bias)


def rows_only(m: Spelled, x: Tensor) -> Tensor:
    return normal(x, 3) * column(m.weight) + column(m.bias)


def strided_groups(m: Spelled, x: Tensor) -> Tensor:
    return normal(x.reshape(2, 2, 3, 4, 5), 1, 3, 4).reshape(x.shape) * column(m.weight) + column(m.bias)


def not_below(m: Spelled, x: Tensor) -> Tensor:
    return nn.functional.normalize(x, dim=-1)


def flat_rows(m: Spelled, x: Tensor) -> Tensor:
    return flat(m, x, 2, 6, 4, -1)


def flat_parts_of_channels(m: Spelled, x: Tensor) -> Tensor:
    return flat(m, x, 2, 4, -1)


def flat_across_groups(m: Spelled, x: Tensor) -> Tensor:
    return flat(m, x, 2, 3, -1, axis=1)


def flat_across_images(m: Spelled, x: Tensor) -> Tensor:
    return flat(m, x, 1, -1)


def flat_with_one_taken_off(m: Spelled, x: Tensor) -> Tensor:
    return flat(m, x, 2, 3, -1, unbiased=True)


KEEPS = [
    weight_of_places,
    layer,
    rows_only,
    strided_groups,
    not_below,
    flat_rows,
    flat_parts_of_channels,
    flat_across_groups,
    flat_across_images,
    flat_with_one_taken_off,
]


def exported(fn: Callable[[Spelled, Tensor], Tensor], x: Tensor, path: Path, opset: int = 23) -> Program:
    torch.onnx.export(
        Spelled(fn).eval(),
        (x,),
        str(path),
        opset_version=opset,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    return rewriter.load(path)


@pytest.mark.parametrize(("rule", "fn"), FIRES, ids=[fn.__name__ for _, fn in FIRES])
@pytest.mark.parametrize("format_", ["fx", "onnx"])
def test_fires(
    rule: type[Rule], fn: Callable[[Spelled, Tensor], Tensor], format_: str, tmp_path: Path
) -> None:
    x = torch.randn(2, 6, 4, 5)
    onnx = format_ == "onnx"
    program = exported(fn, x, tmp_path / "model.onnx") if onnx else rewriter.trace(Spelled(fn).eval(), (x,))
    made, record = fuse(program, [rule()])
    (found,) = record.matches
    assert found.committed, found.reason
    assert sum("norm" in node.op.lower() for node in made.graph.nodes) == 1
    assert not any("mean" in node.op.lower() or "sqrt" in node.op.lower() for node in made.graph.nodes)
    new, old = (torch.as_tensor(p.run(x)[0]) for p in (made, program))
    torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fn", KEEPS, ids=[fn.__name__ for fn in KEEPS])
@pytest.mark.parametrize("format_", ["fx", "onnx"])
def test_keeps(fn: Callable[[Spelled, Tensor], Tensor], format_: str, tmp_path: Path) -> None:
    x = torch.randn(2, 6, 4, 5)
    onnx = format_ == "onnx"
    program = exported(fn, x, tmp_path / "model.onnx") if onnx else rewriter.trace(Spelled(fn).eval(), (x,))
    made, record = fuse(program, [GroupNorm(), L2Norm()])
    assert made is program and not record.committed


@pytest.mark.parametrize("size", [(2, 4, 5), (1, 2, 7), (3, 9, 2)], ids=str)
def test_flat_groups_of_any_size(size: tuple[int, int, int]) -> None:
    dims = {0: Dim("b"), 2: Dim("h", min=2), 3: Dim("w", min=2)}
    example = torch.randn(2, 6, 4, 5)
    program = rewriter.trace(Spelled(flat_groups).eval(), (example,), dynamic_shapes=(dims,))
    made, record = fuse(program, [GroupNorm()])
    assert [m.reason for m in record.matches] == [None]
    x = torch.randn(size[0], 6, *size[1:])
    torch.testing.assert_close(made.run(x)[0], program.run(x)[0], rtol=1e-4, atol=1e-5)


def test_zeros_have_no_direction() -> None:
    """Without a number below the root, a row of zeros gives NaN, as it does when it is spelled out."""
    program = rewriter.trace(Spelled(by_length).eval(), (torch.randn(2, 6, 4, 5),))
    made, _ = fuse(program, [L2Norm()])
    x = torch.zeros(2, 6, 4, 5)
    assert torch.isnan(program.run(x)[0]).all() and torch.isnan(made.run(x)[0]).all()
