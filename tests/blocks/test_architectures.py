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
    "seresnet18": [("channel-gate", "squeeze-excite", 8)],
    "mobilenetv3_small_100": [("channel-gate", "squeeze-excite", 9)],
    "ecaresnet26t": [("channel-gate", "efficient channel attention", 8)],
    "gcresnet33ts": [("pooled-context", "global context", 10)],
    "skresnet18": [("branch-softmax", "selective kernels", 8)],
    "resnest14d": [("branch-softmax", "split attention", 4)],
    "eca_nfnet_l0": [("channel-gate", "efficient channel attention", 12)],
    "focalnet_tiny_srf": [("modulation", "focal modulation", 12)],
    "resnet18 with cbam": [
        ("channel-gate", "mean-and-max channel attention", 8),
        ("spatial-gate", "mean-and-max spatial attention", 8),
    ],
    "resnet18 with coord": [("strip-gate", "coordinate attention", 8)],
}
"""Kind, mechanism, and how many of them `timm` builds."""

SITES = {"lambda_resnet26t": {"latent-attention": 3}, "botnet26t_256": {"attention": 3}}
"""Attention among convolutions: keys of a lambda layer are queries of their own, a softmax over places."""

SIDE = 64
SIDES = {"lambda_resnet26t": 256, "botnet26t_256": 256}

pytestmark = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")


def program_of(name: str, kind: str, folder: Path) -> Program:
    provide()
    import timm

    torch.manual_seed(0)
    base, _, gate = name.partition(" with ")
    settings = {"block_args": {"attn_layer": gate}} if gate else {}
    module = timm.create_model(base, pretrained=False, **settings).eval()
    x = image(SIDES.get(base, SIDE))
    if kind == "fx":
        return rewriter.trace(module, (x,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), str(folder / "model.onnx"), opset_version=17, dynamo=False)
    return rewriter.load(folder / "model.onnx")


def image(side: int = SIDE) -> torch.Tensor:
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["fx", "onnx"])
@pytest.mark.parametrize("name", FOUND)
def test_every_block_is_found_and_nothing_else(name: str, kind: str, tmp_path: Path) -> None:
    found, missed = blocks(program_of(name, kind, tmp_path))
    expected = {(of, mechanism): count for of, mechanism, count in FOUND[name]}
    assert Counter((b.kind, b.mechanism) for b in found) == expected
    assert not missed


@pytest.mark.parametrize("kind", ["fx", "onnx"])
@pytest.mark.parametrize("name", SITES)
def test_attention_among_convolutions_is_found(name: str, kind: str, tmp_path: Path) -> None:
    program = program_of(name, kind, tmp_path)
    assert Counter(site.kind for site in program.sites) == SITES[name]
    assert not program.blocks


BRANCHES = {"branch-softmax": 8, "branch-sum": 8}


@pytest.mark.parametrize(
    ("name", "kind", "rules"),
    [
        ("skresnet18", "fx", BRANCHES),
        ("skresnet18", "onnx", BRANCHES),
        ("resnet18 with cbam", "onnx", {"global-pool": 17}),
    ],
)
def test_gates_are_rewritten_end_to_end(name: str, kind: str, rules: dict[str, int], tmp_path: Path) -> None:
    program = program_of(name, kind, tmp_path)
    fused, record = fuse(program, [r for rule in rules for r in parse_rules(rule) or ()])
    assert Counter(m.rule for m in record.committed) == rules
    got, want = (np.asarray(p.run(image())[0]) for p in (fused, program))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
