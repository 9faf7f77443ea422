"""Does once what raising any graph would do again: one attention is captured in both formats and raised.

Child processes are forked with it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

import rewriter
from benchmarks.coverage.forms import FORMS
from benchmarks.coverage.work import silent


class _Attention(torch.nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.softmax(q @ k.transpose(-1, -2), -1) @ v


with tempfile.TemporaryDirectory() as folder, silent():
    for name in ("fx-eager", "onnx-torchscript"):
        path = Path(folder, name).with_suffix(FORMS[name].suffix)
        q, k, v = (torch.randn(2, 5, 8) for _ in range(3))
        FORMS[name].export(_Attention(), (q, k, v), path)
        assert rewriter.load(path).sites
