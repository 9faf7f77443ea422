"""Rotary embeddings: spellings that become one operator, and look-alikes that do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rewriter
from rewriter.passes import Rotary
from rewriter.program.program import Program
from rewriter.rules import fuse

HALF = 4
Spelling = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of a value and the cosines and sines of angles per place, half as many as it has features."""


def swapped(x: Tensor) -> Tensor:
    return torch.cat((-x[..., HALF:], x[..., :HALF]), -1)


def twice(x: Tensor) -> Tensor:
    return torch.cat((x, x), -1)


def halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x * twice(cos) + swapped(x) * twice(sin)


def joined(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def added(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((cos * a + -b * sin, sin * a + b * cos), -1)


def neighbours(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    other = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    return x * cos.repeat_interleave(2, -1) + other * sin.repeat_interleave(2, -1)


def pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.reshape(*x.shape[:-1], HALF, 2).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


FIRES = {
    "halves": halves,
    "halves, joined": joined,
    "halves, added": added,
    "neighbours": neighbours,
    "pairs": pairs,
    "halves, then a view": lambda x, c, s: halves(x, c, s).reshape(2, -1, 2 * HALF),
    "joined, then a view": lambda x, c, s: joined(x, c, s).reshape(2, -1, 2 * HALF),
    "of a computed value": lambda x, c, s: halves(torch.tanh(x) * 2, c, s),
}


def one_sine(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x * twice(cos) + swapped(x) * torch.cat((sin, sin.flip(-1)), -1)


def no_rotation(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x * twice(cos) + torch.cat((x[..., HALF:], x[..., :HALF]), -1) * twice(sin)


def other_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x * twice(cos) + torch.cat((-x[..., HALF:].flip(-1), x[..., :HALF].flip(-1)), -1) * twice(sin)


def two_values(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x * twice(cos) + swapped(x.exp()) * twice(sin)


def reflected(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin - b * cos), -1)


KEEPS = {f.__name__: f for f in (one_sine, no_rotation, other_pairs, two_values, reflected)}


class Rotated(nn.Module):
    """Rotates ``[batch, heads, places, features]``, or with places before heads, by a table of angles."""

    def __init__(self, spelled: Spelling, *, places_first: bool = False, fixed: bool = True) -> None:
        super().__init__()
        self.spelled, self.places_first, self.fixed = spelled, places_first, fixed
        self.register_buffer("frequencies", 10.0 ** -torch.arange(0.0, HALF))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        axis = 1 if self.places_first else 2
        at = torch.arange(x.shape[axis]).float()[None] if self.fixed else positions.float()
        angles = (at[..., None] * self.get_buffer("frequencies")).unsqueeze(2 if self.places_first else 1)
        return self.spelled(x, angles.cos(), angles.sin()) + 1


def exported(
    module: nn.Module, given: tuple[Tensor, Tensor], path: Path, opset: int = 23, *, dynamic: bool = False
) -> Program:
    places = torch.export.Dim("places", min=2, max=64)
    torch.onnx.export(
        module.eval(),
        given,
        str(path),
        opset_version=opset,
        dynamo=True,
        external_data=False,
        verbose=False,
        dynamic_shapes={"x": {2: places}, "positions": {1: places}} if dynamic else None,
    )
    return rewriter.load(path)


def inputs(heads: int = 3, places: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, heads, places, 2 * HALF, generator=generator)
    return x, torch.randint(0, 50, (2, places), generator=generator)


def operators(program: Program) -> list[str]:
    return [node.op.rpartition("::")[2] for node in program.graph.nodes]


def check(program: Program, target: str, x: Tensor, positions: Tensor) -> None:
    made, record = fuse(program, [Rotary()], target=target)
    (found,) = record.matches
    assert found.committed, found.reason
    assert operators(made).count("RotaryEmbedding") == 1
    given = {"x": x, "positions": positions}
    given = {name: given[name] for name in program.graph.inputs}
    (new,), (old,) = made.run(**given), program.run(**given)
    torch.testing.assert_close(torch.as_tensor(new), torch.as_tensor(old), rtol=1e-5, atol=1e-5)
    assert not fuse(made, [Rotary()], target=target)[1].matches


@pytest.mark.parametrize("spelled", FIRES.values(), ids=FIRES)
def test_fires(spelled: Spelling, tmp_path: Path) -> None:
    program = exported(Rotated(spelled), inputs(), tmp_path / "model.onnx")
    check(program, "onnx", *inputs())


@pytest.mark.parametrize("places_first", [False, True], ids=["heads first", "places first"])
@pytest.mark.parametrize("fixed", [False, True], ids=["positions are given", "positions are counted"])
@pytest.mark.parametrize(("target", "opset"), [("onnx", 23), ("ort", 18)])
def test_layouts(places_first: bool, fixed: bool, target: str, opset: int, tmp_path: Path) -> None:
    module = Rotated(halves, places_first=places_first, fixed=fixed)
    x, positions = inputs(3, 5)
    if places_first:
        x = x.transpose(1, 2).contiguous()
    program = exported(module, (x, positions), tmp_path / "model.onnx", opset)
    check(program, target, x, positions)


@pytest.mark.parametrize("places", [2, 17, 64])
def test_dynamic_lengths(places: int, tmp_path: Path) -> None:
    program = exported(Rotated(halves), inputs(), tmp_path / "model.onnx", dynamic=True)
    check(program, "onnx", *inputs(3, places))


@pytest.mark.parametrize("spelled", KEEPS.values(), ids=KEEPS)
def test_keeps(spelled: Spelling, tmp_path: Path) -> None:
    program = exported(Rotated(spelled), inputs(), tmp_path / "model.onnx")
    made, record = fuse(program, [Rotary()])
    assert made is program and not record.committed


def test_an_older_opset_has_no_operator(tmp_path: Path) -> None:
    program = exported(Rotated(halves), inputs(), tmp_path / "model.onnx", 18)
    made, record = fuse(program, [Rotary()])
    assert made is program
    assert "opset 23" in (record.refused[0].reason or "")


def test_pytorch_has_no_operator() -> None:
    program = rewriter.trace(Rotated(halves), inputs())
    assert fuse(program, [Rotary(asked=False)])[0] is program
    made, record = fuse(program, [Rotary()])
    assert made is program and "cannot be written" in (record.refused[0].reason or "")
