"""Code that changed between two runs is noticed, wherever it stands."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rewriter.program.fx import trace
from rewriter.verify.code import code_of
from rewriter.verify.fingerprint import fingerprint
from rewriter.verify.module_program import ModuleProgram

HELPER = "def twice(x):\n    return 2 * x\n"
NET = (
    "import torch\nimport numpy\nfrom users_helper import twice\n"
    "class Net(torch.nn.Module):\n    def forward(self, x):\n        return twice(x)\n"
    "def task(run):\n    return 1.0\n"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "users_helper.py").write_text(HELPER)
    (tmp_path / "users_net.py").write_text(NET)
    yield tmp_path
    for name in ("users_helper", "users_net"):
        sys.modules.pop(name, None)


def load() -> Any:
    for name in ("users_helper", "users_net"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    return importlib.import_module("users_net")


def test_a_change_of_the_file_or_of_what_it_imports_is_seen(folder: Path) -> None:
    first = load()
    whole, task = code_of([first.Net]), code_of([first.task])
    assert code_of([load().Net]) == whole
    (folder / "users_helper.py").write_text(HELPER.replace("2", "3"))
    second = load()
    assert code_of([second.Net]) != whole and code_of([second.task]) != task
    (folder / "users_helper.py").write_text(HELPER)
    assert code_of([load().Net]) == whole
    (folder / "users_net.py").write_text(NET + "# more\n")
    assert code_of([load().Net]) != whole


def test_a_module_that_is_not_traced_is_its_code_as_well(folder: Path) -> None:
    program = trace(torch.nn.Identity(), (torch.ones(2),))
    before = fingerprint(ModuleProgram(load().Net(), program))
    assert fingerprint(ModuleProgram(load().Net(), program)) == before
    (folder / "users_helper.py").write_text(HELPER.replace("2", "3"))
    assert fingerprint(ModuleProgram(load().Net(), program)) != before


def test_installed_packages_are_left_out_and_anything_has_a_hash() -> None:
    assert code_of([torch.nn.Linear]) == code_of([np.sum]) == code_of([])
    assert len(code_of([functools.partial(print), lambda: 0, 3, None])) == 64
