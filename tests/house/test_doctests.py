from __future__ import annotations

import doctest
import importlib

import pytest

from tests.house.source import ROOT, module, modules

EXAMPLES = sorted(module(p) for p in modules() if ">>> " in (ROOT / p).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_in_docstrings(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted
    assert not result.failed
