"""Find attention in a trained model, rewrite it to something better, and prove what it cost.

>>> import rewriter
>>> rewriter.load("missing.onnx")
Traceback (most recent call last):
    ...
rewriter.errors.InputError: missing.onnx: No such file or directory
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rewriter.errors import BudgetError, InputError, RewriterError

if TYPE_CHECKING:
    from rewriter import passes
    from rewriter.engine import rewrite
    from rewriter.plan import Plan
    from rewriter.program.fx import trace
    from rewriter.program.load import load
    from rewriter.program.program import Program
    from rewriter.verify.compare import validate

__all__ = [
    "BudgetError",
    "InputError",
    "Plan",
    "Program",
    "RewriterError",
    "load",
    "passes",
    "rewrite",
    "trace",
    "validate",
]

__version__ = "0.1.0"

_LAZY = {
    "Plan": "rewriter.plan",
    "Program": "rewriter.program.program",
    "load": "rewriter.program.load",
    "rewrite": "rewriter.engine",
    "trace": "rewriter.program.fx",
    "validate": "rewriter.verify.compare",
}


def __getattr__(name: str) -> Any:
    # torch and onnx are imported with the first thing that needs them, not with the package
    if name == "passes":
        return import_module("rewriter.passes")
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY, "passes"])
