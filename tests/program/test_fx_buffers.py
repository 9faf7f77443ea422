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
