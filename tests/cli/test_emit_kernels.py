from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rewriter

Call = Callable[[str], Any]


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = (self.q(x) @ self.k(x).transpose(1, 2)).softmax(-1) @ x
        return result


@pytest.fixture
def traced(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    rewriter.trace(Plain().eval(), (torch.randn(1, 12, 8),)).save(tmp_path / "m.pt2")
    return tmp_path / "m.pt2"


def test_kernels_are_written_beside_the_model(call: Call, traced: Path) -> None:
    out, package = traced.with_name("new.pt2"), traced.with_name("kernels_of_m")
    said = call(f"rewrite {traced} -o {out} --apply softmax --target triton --emit-kernels {package}")
    assert said.status == 0, said.err
    assert f"kernels in {package}" in " ".join(said.out.split())
    assert {"__init__.py", "test_kernels.py", "softmax"} == set(os.listdir(package))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--emit-kernels {where}/new_kernels", "give --target triton"),
        ("--target triton --emit-kernels {where}/7kernels", "no name of a package"),
        ("--target triton --emit-kernels {where}", "give a new directory"),
    ],
)
def test_where_they_cannot_be_nothing_is_written(call: Call, traced: Path, options: str, words: str) -> None:
    given = options.format(where=traced.parent)
    said = call(f"rewrite {traced} -o {traced.with_name('new.pt2')} --apply softmax {given}")
    assert said.status == 2 and words in " ".join(said.err.split())
    assert os.listdir(traced.parent) == ["m.pt2"]
