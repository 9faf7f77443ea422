"""Gates and fusion blocks of public architectures, one of each design, in both kinds of graph."""

from __future__ import annotations

import warnings
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import rewriter
from benchmarks.coverage.placeholder import provide
from rewriter.blocks import blocks
from rewriter.passes import parse_rules
from rewriter.program.program import Program
from rewriter.rules import fuse

FOUND = {
    "seresnet18": ("channel-gate", "squeeze-excite", 8),
    "mobilenetv3_small_100": ("channel-gate", "squeeze-excite", 9),
    "ecaresnet26t": ("channel-gate", "efficient channel attention", 8),
    "gcresnet33ts": ("pooled-context", "global context", 10),
    "skresnet18": ("branch-softmax", "selective kernels", 8),
    "resnest14d": ("branch-softmax", "split attention", 4),
}
"""Kind, mechanism, and how many of them `timm` builds."""

SIDE = 64

pytestmark = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")


def program_of(name: str, kind: str, folder: Path) -> Program:
    provide()
    import timm

    torch.manual_seed(0)
    module = timm.create_model(name, pretrained=False).eval()
    x = image()
    if kind == "fx":
        return rewriter.trace(module, (x,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), str(folder / "model.onnx"), opset_version=17, dynamo=False)
    return rewriter.load(folder / "model.onnx")


def image() -> torch.Tensor:
    return torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["fx", "onnx"])
@pytest.mark.parametrize("name", FOUND)
def test_every_block_is_found_and_nothing_else(name: str, kind: str, tmp_path: Path) -> None:
    kind_of, mechanism, count = FOUND[name]
    found, missed = blocks(program_of(name, kind, tmp_path))
    assert Counter((b.kind, b.mechanism) for b in found) == {(kind_of, mechanism): count}
    assert not missed


@pytest.mark.parametrize("kind", ["fx", "onnx"])
@pytest.mark.parametrize(("name", "rules"), [("skresnet18", {"branch-softmax": 8, "branch-sum": 8})])
def test_branches_are_rewritten_end_to_end(
    name: str, rules: dict[str, int], kind: str, tmp_path: Path
) -> None:
    program = program_of(name, kind, tmp_path)
    fused, record = fuse(program, [r for rule in rules for r in parse_rules(rule) or ()])
    assert Counter(m.rule for m in record.committed) == rules
    got, want = (np.asarray(p.run(image())[0]) for p in (fused, program))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
