"""What a test does where a real model, or data for it, is not on this machine."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

__all__ = ["skip_or_fail"]


def skip_or_fail(error: Exception) -> NoReturn:
    """Skip the test, or raise the error if REWRITER_REQUIRE_MODELS=1."""
    if os.environ.get("REWRITER_REQUIRE_MODELS") == "1":
        raise error
    pytest.skip(str(error))
