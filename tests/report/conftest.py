"""The small model and the command line of ``tests/cli``."""

from __future__ import annotations

from tests.cli.conftest import call, model

__all__ = ["call", "model"]
