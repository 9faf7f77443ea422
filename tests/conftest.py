from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import pytest

from rewriter.errors import InputError

if TYPE_CHECKING:
    from rewriter.models_zoo.zoo_model import ZooModel


# before anything imports Triton: its kernels run in the interpreter, on any machine
os.environ.setdefault("TRITON_INTERPRET", "1")


@cache
def _loaded(name: str) -> ZooModel:
    from rewriter import models_zoo

    return models_zoo.load(name)


@pytest.fixture
def zoo() -> Callable[[str], ZooModel]:
    """Load a model, or skip where its package is absent (fail if REWRITER_REQUIRE_MODELS=1)."""

    def load(name: str) -> ZooModel:
        from rewriter import models_zoo

        try:
            models_zoo.find(name)
        except InputError as error:
            if os.environ.get("REWRITER_REQUIRE_MODELS") == "1":
                raise
            pytest.skip(str(error))
        return _loaded(name)

    return load
