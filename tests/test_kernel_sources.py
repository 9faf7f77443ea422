"""Kernels that a program calls, written as a package of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import rewriter
from rewriter.errors import InputError
from rewriter.kernel_sources import FEW, KernelCall, kernel_calls, small, write_kernels
from rewriter.selectors import parse_apply

HEADS, GROUPS, SIZE = 4, 2, 8

FORMS = (
    "softmax@0",
    "window:window=5,sinks=2@1",
    "clipped:gamma=-0.01@2",
    "linear:feature_map=elu@3",
    "window:window=3,stride=2,grid=4x15@4",
    "agent:agents=4@5",
    "pooled:window=16,pool=4@6",
)
NAMES = ("softmax", "window", "clipped", "scan", "gathered", "pooled")


class Block(nn.Module):
    """Seven attentions in a row; the first four are causal."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.ModuleList(nn.Linear(SIZE, HEADS * SIZE) for _ in FORMS)
        self.kv = nn.ModuleList(nn.Linear(SIZE, 2 * GROUPS * SIZE) for _ in FORMS)
        self.out = nn.ModuleList(nn.Linear(HEADS * SIZE, SIZE) for _ in FORMS)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        for at, (to_q, to_kv, out) in enumerate(zip(self.q, self.kv, self.out, strict=True)):
            q = to_q(x).reshape(-1, n, HEADS, SIZE).transpose(1, 2)
            k, v = to_kv(x).reshape(-1, n, 2 * GROUPS, SIZE).transpose(1, 2).chunk(2, 1)
            found = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=at < 4, enable_gqa=True)
            x = x + out(found.transpose(1, 2).flatten(2))
        return x


@pytest.fixture(scope="module")
def program() -> rewriter.Program:
    torch.manual_seed(0)
    traced = rewriter.trace(Block().eval(), (torch.randn(2, 60, SIZE),))
    new, record = rewriter.rewrite(traced, [parse_apply(text) for text in FORMS], target="triton")
    assert [s.reason for s in record.sites] == [None] * len(FORMS)
    return new


def run(package: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_kernels.py"]
    hidden = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(command, cwd=package, capture_output=True, text=True, env=hidden, timeout=500)


def test_calls_are_those_of_the_plan(program: rewriter.Program) -> None:
    calls = kernel_calls(program)
    assert [call.name for call in calls] == [
        "softmax",
        "window",
        "clipped",
        "scan",
        "window",
        "gathered",
        "softmax",
        "pooled",
    ]
    assert calls[0].operands == (
        ((2, HEADS, 60, SIZE), "float32"),
        ((2, GROUPS, 60, SIZE), "float32"),
        ((2, GROUPS, 60, SIZE), "float32"),
    )
    assert calls[1].settings["window"] == [5] and calls[1].settings["sinks"] == 2


def test_the_package_stands_alone_and_its_test_passes_and_can_fail(
    program: rewriter.Program, tmp_path: Path
) -> None:
    package = tmp_path / "model_kernels"
    assert write_kernels(program, package) == NAMES
    for path in package.rglob("*.py"):
        lines = path.read_text().splitlines()
        assert not [line for line in lines if line.startswith(("from rewriter", "import rewriter"))], path
    said = run(package)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "8 passed" in said.stdout
    definition = package / "softmax" / "definition.py"
    definition.write_text(definition.read_text().replace("scores = x.scale *", "scores = 1.1 * x.scale *"))
    said = run(package)
    assert said.returncode == 1 and "failed" in said.stdout


def test_a_program_of_any_length() -> None:
    module, x = Block().eval(), torch.randn(1, 20, SIZE)
    traced = rewriter.trace(module, (x,), dynamic_shapes=({1: Dim("n", min=2, max=500)},))
    new, _ = rewriter.rewrite(traced, [parse_apply("softmax")], target="triton", verify=False)
    (call,) = {call.name: call for call in kernel_calls(new)}.values()
    assert call.name == "softmax" and small(call).operands[0] == ((1, HEADS // GROUPS, FEW, SIZE), "float32")


def test_large_calls_become_small_ones() -> None:
    long = (2, 9, 4096, 64), "float16"
    few, keys = (2, 3, 4096, 64), (1, 1, FEW, 64)
    bias, sink = ((1, 1, 1, 4096), "float16"), ((1, 9, 1, 1), "float16")
    call = small(
        KernelCall("window", (long, (few, "float16"), (few, "float16"), bias, sink), {"window": [64]})
    )
    assert call.operands == (
        ((1, 3, FEW, 64), "float16"),
        (keys, "float16"),
        (keys, "float16"),
        ((1, 1, 1, FEW), "float16"),
        ((1, 3, 1, 1), "float16"),
    )
    cached = small(
        KernelCall(
            "softmax", (((1, 4, 1, 8), "float32"), *[((1, 4, 900, 8), "float32")] * 2), {"offset": 899}
        )
    )
    assert cached.operands[0] == ((1, 1, 1, 8), "float32") and cached.settings == {"offset": FEW - 1}
    grid = small(
        KernelCall(
            "window", (((1, 4, 1025, 8), "float32"),) * 3, {"grid": [32, 32], "sinks": 1, "window": [7, 7]}
        )
    )
    assert grid.operands[0] == ((1, 1, 37, 8), "float32") and grid.settings["grid"] == [6, 6]


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no name": (lambda where: where / "my-kernels", "no name of a package"),
    "no parent": (lambda where: where / "a" / "b", "does not exist"),
    "not empty": (lambda where: where, "give a new directory"),
}


@pytest.mark.parametrize(("place", "words"), REFUSED.values(), ids=list(REFUSED))
def test_where_a_package_cannot_be(
    place: Callable[[Path], Path], words: str, program: rewriter.Program, tmp_path: Path
) -> None:
    home = tmp_path / "here"
    home.mkdir()
    (home / "kept").write_text("")
    with pytest.raises(InputError, match=words):
        write_kernels(program, place(home))
    assert [path.name for path in home.iterdir()] == ["kept"]


def test_a_program_without_kernels(tmp_path: Path) -> None:
    traced = rewriter.trace(nn.Linear(2, 2), (torch.zeros(1, 2),))
    with pytest.raises(InputError, match="calls no fused kernel"):
        write_kernels(traced, tmp_path / "kernels")
    assert not list(tmp_path.iterdir())
