"""The rule in docs/rules.md works as it is printed there, from outside the package and by command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import rewriter

TEXT = (Path(__file__).parents[2] / "docs" / "rules.md").read_text(encoding="utf-8")


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (1 / (1 + (-1.7 * x.transpose(0, 1)).exp())).T


class Growing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1 / (1 + x.exp())


def applied(folder: Path, model: nn.Module) -> subprocess.CompletedProcess[str]:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    (folder / "logistic.py").write_text(code, encoding="utf-8")
    rewriter.trace(model, (torch.randn(3, 4),)).save(folder / "model.pt2")
    arguments = ["rewrite", "model.pt2", "-o", "fused.pt2", "--apply", "logistic:Logistic", "--json"]
    return subprocess.run(
        [sys.executable, "-m", "rewriter", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_rule_of_a_user_is_applied_by_command(tmp_path: Path) -> None:
    done = applied(tmp_path, Gate())
    assert done.returncode == 0, done.stderr
    (match,) = json.loads(done.stdout)["rewriting"]["fused"]
    assert match["rule"] == "logistic" and match["committed"]
    program = rewriter.load(tmp_path / "fused.pt2")
    operators = {node.op for node in program.graph.nodes}
    assert "aten::sigmoid.default" in operators and "aten::exp.default" not in operators
    plan = json.loads((tmp_path / "fused.pt2.plan.json").read_text(encoding="utf-8"))
    assert plan["rules"] == ["logistic:Logistic"]


def test_a_rule_of_a_user_refuses(tmp_path: Path) -> None:
    done = applied(tmp_path, Growing())
    assert done.returncode == 1
    (match,) = json.loads(done.stdout)["rewriting"]["fused"]
    assert match["reason"] == "the exponent grows with x"
