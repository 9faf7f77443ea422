"""The pass in CONTRIBUTING.md works as it is printed there."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import rewriter
from rewriter import models_zoo
from rewriter.engine import Pass

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def sharpen(tmp_path_factory: pytest.TempPathFactory) -> Any:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    path = tmp_path_factory.mktemp("contributed") / "sharpen_form.py"
    path.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module.Sharpen


@pytest.fixture(scope="module")
def digits() -> tuple[rewriter.Program, tuple[Any, ...]]:
    zoo = models_zoo.load("digits-vit")
    assert isinstance(zoo.model, torch.nn.Module)
    return rewriter.trace(zoo.model, zoo.inputs, dynamic_shapes=zoo.dynamic_shapes), zoo.inputs


def test_it_is_verified_and_commits(sharpen: Any, digits: tuple[rewriter.Program, tuple[Any, ...]]) -> None:
    program, inputs = digits
    step = Pass(sharpen(1.5))
    rewritten = step(program)
    assert step.report is not None
    assert [s.reason for s in step.report.sites] == [None] * 4
    assert not step.report.exact
    assert not torch.allclose(rewritten.run(*inputs)[0], program.run(*inputs)[0])


def test_its_exact_limit_is_exact(sharpen: Any, digits: tuple[rewriter.Program, tuple[Any, ...]]) -> None:
    program, inputs = digits
    step = Pass(sharpen(1.0))
    rewritten = step(program)
    assert step.report is not None
    assert step.report.exact
    torch.testing.assert_close(rewritten.run(*inputs), program.run(*inputs), rtol=1e-4, atol=1e-5)


def test_its_parameters_are_checked(sharpen: Any) -> None:
    assert str(sharpen.parse(["factor=1.25"])) == "sharpen:factor=1.25"
    with pytest.raises(ValueError, match="expected more than 0"):
        sharpen(0.0)
