from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

import rewriter
from rewriter.report.rewriting import rewriting_view, work
from rewriter.rules import Fused
from rewriter.selectors import parse_apply


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize(
    ("form", "dynamic", "known"),
    [("merge:ratio=0.5", True, False), ("merge:ratio=0.5", False, True), ("softmax", True, True)],
)
def test_work_is_stated_where_it_is_known(form: str, dynamic: bool, known: bool) -> None:
    shapes = ({2: torch.export.Dim("n", min=4, max=4096)},) if dynamic else None
    program = rewriter.trace(Attention(), (torch.randn(1, 2, 64, 32),), dynamic_shapes=shapes)
    _, done = rewriter.rewrite(program, [parse_apply(form)], verify=False)
    assert [work(site) != "–" for site in done.committed] == [known]


def test_gains_that_are_alike_are_said_once() -> None:
    gains = ("2 factors", "2 factors", "3 factors")
    fused = [Fused("folded-scales", f"v{k}", True, gain=gain) for k, gain in enumerate(gains)]
    console = Console(file=io.StringIO(), width=100)
    console.print(rewriting_view([], fused))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count("2 factors") == 1 and "folded-scales: 2 factors, 2 times" in shown
    assert "folded-scales: 3 factors\n" in "\n".join(line.rstrip() for line in shown.splitlines()) + "\n"
