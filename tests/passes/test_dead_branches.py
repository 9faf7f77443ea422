"""Branches that constants switch off: gone, or kept where they are not switched off."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rewriter
from rewriter.passes import DeadBranches
from rewriter.program.program import Program
from rewriter.rules import fuse

WIDTH = 8


class Branch(nn.Module):
    """A residual branch behind a gate."""

    flag: Tensor

    def __init__(self, sum_: Callable[[Branch, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.sum, self.f = sum_, nn.Linear(WIDTH, WIDTH)
        self.gate, self.scale = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(WIDTH))
        self.some = nn.Parameter(torch.tensor([0.0, 1.0]).repeat(WIDTH // 2))
        self.register_buffer("flag", torch.tensor(False))

    def forward(self, x: Tensor) -> Tensor:
        branch = F.scaled_dot_product_attention(self.f(x), x, x)
        return self.sum(self, x.tanh(), branch)


FIRES: dict[str, Callable[[Branch, Tensor, Tensor], Tensor]] = {
    "a gate that was never opened": lambda m, x, y: x + torch.tanh(m.gate) * y,
    "a layer's scale": lambda m, x, y: y * m.scale + x,
    "a number": lambda m, x, y: x + 0.0 * y,
    "subtracted": lambda m, x, y: x - m.gate * (2 * y),
    "a flag": lambda m, x, y: torch.where(m.flag, y, x),
    "the other flag": lambda m, x, y: torch.where(~m.flag, x, y),
}

KEEPS: dict[str, Callable[[Branch, Tensor, Tensor], Tensor]] = {
    "zero in some places": lambda m, x, y: x + m.some * y,
    "a gate that is open": lambda m, x, y: x + torch.cos(m.gate) * y,
    "by the input": lambda m, x, y: x + x.mean() * y,
    "a bias of zeros": lambda m, x, y: x + m.scale + y,
    "divided": lambda m, x, y: x + m.gate / y,
    "larger than what is left": lambda m, x, y: x[:, :1] + m.gate * y,
    "subtracted from": lambda m, x, y: m.gate * y - x,
}


def program_of(module: nn.Module, kind: str, folder: Path) -> Program:
    if kind == "fx":
        return rewriter.trace(module.eval(), (tokens(),))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), (tokens(),), str(folder / "m.onnx"), dynamo=False, opset_version=17)
    return rewriter.load(folder / "m.onnx")


def tokens() -> Tensor:
    return torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", FIRES)
@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_fires(name: str, kind: str, tmp_path: Path) -> None:
    program = program_of(Branch(FIRES[name]), kind, tmp_path)
    assert program.sites, "the exporter has removed the branch"
    new, record = fuse(program, [DeadBranches()])
    assert len(record.committed) == 1
    assert not new.sites and len(new.graph.nodes) <= 2
    for a, b in zip(new.run(tokens()), program.run(tokens()), strict=True):
        torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", KEEPS)
@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_keeps(name: str, kind: str, tmp_path: Path) -> None:
    program = program_of(Branch(KEEPS[name]), kind, tmp_path)
    new, record = fuse(program, [DeadBranches()])
    assert new is program and not record.matches
