"""Buffers that a run writes to hold no constants: what is true of their first numbers is not true later."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import rewriter
from rewriter.passes import parse_rules
from rewriter.rules import fuse

WIDTH = 4


class Opening(nn.Module):
    """A branch whose gate is 0 in the first run, and 1 more in each run after it."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Linear(WIDTH, WIDTH)
        self.gate: Tensor
        self.register_buffer("gate", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.gate * self.branch(x)
        self.gate.add_(1.0)
        return y


class Scaled(Opening):
    """A projection behind a scale that the runs change."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.branch(x) * (self.gate + 1)
        self.gate.add_(1.0)
        return y


class Remembers(nn.Module):
    """All rows of a projection are written, and one is read."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.scale = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.randn(WIDTH))
        self.last: Tensor
        self.register_buffer("last", torch.zeros(2, 3, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        h = self.plain(x)
        self.last.copy_(h)
        y: Tensor = (h * self.scale)[:, :1]
        return y


def test_buffers_that_are_written_are_no_constants() -> None:
    program = rewriter.trace(Opening(), (torch.randn(2, WIDTH),))
    assert set(program.graph.constants) == {"p_branch_weight", "p_branch_bias"}
    assert program.graph.inputs == ("x",)


def test_rewritten_models_keep_their_state() -> None:
    for kind in (Opening, Scaled):
        torch.manual_seed(0)
        module, x = kind(), torch.randn(2, WIDTH)
        program = rewriter.trace(copy.deepcopy(module), (x,))
        made, _ = fuse(program, list(parse_rules("exact") or ()))
        rewritten = made.module()
        for _ in range(3):
            torch.testing.assert_close(rewritten(x), module(x))


def test_what_is_written_to_buffers_is_not_cut() -> None:
    torch.manual_seed(0)
    module, x = Remembers(), torch.randn(2, 3, WIDTH)
    program = rewriter.trace(copy.deepcopy(module), (x,))
    assert len(program.graph.writes) == 1
    made, record = fuse(program, list(parse_rules("exact") or ()))
    assert not record.committed
    rewritten = made.module()
    torch.testing.assert_close(rewritten(x), module(x))
    torch.testing.assert_close(dict(rewritten.named_buffers())["last"], module.last)
