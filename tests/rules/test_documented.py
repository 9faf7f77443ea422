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


class Gated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + (-x).exp())


def test_a_rule_of_a_user_is_applied_by_command(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "swish.py").write_text(code, encoding="utf-8")
    rewriter.trace(Gated(), (torch.randn(3, 4),)).save(tmp_path / "model.pt2")
    arguments = ["rewrite", "model.pt2", "-o", "fused.pt2", "--apply", "swish:Swish", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "rewriter", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (match,) = json.loads(done.stdout)["rewriting"]["fused"]
    assert match["rule"] == "swish" and match["committed"]
    program = rewriter.load(tmp_path / "fused.pt2")
    assert [node.op for node in program.graph.nodes] == ["aten::silu.default"]
    plan = json.loads((tmp_path / "fused.pt2.plan.json").read_text(encoding="utf-8"))
    assert plan["rules"] == ["swish:Swish"]
