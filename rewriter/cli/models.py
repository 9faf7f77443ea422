"""What a MODEL argument names: a file, a directory, or a model of the zoo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rewriter.errors import InputError

if TYPE_CHECKING:
    from rewriter.program.program import Program

__all__ = ["ZOO", "open_model"]

ZOO = "zoo:"


def open_model(name: str) -> Program:
    """Load what ``name`` says.

    Raises
    ------
    InputError
        When there is no such file or zoo model, or it cannot be read.
    """
    from rewriter.program.load import load

    if name.startswith(ZOO):
        return _from_zoo(name.removeprefix(ZOO))
    if not Path(name).exists():
        raise InputError(
            f"{name}: no such file or directory; expected .onnx, .pt2, a model directory or {ZOO}NAME"
        )
    return load(name)


def _from_zoo(name: str) -> Program:
    from rewriter import models_zoo
    from rewriter.program.load import load

    found = models_zoo.load(name)
    if isinstance(found.model, Path):
        return load(found.model)
    from rewriter.program.fx import trace

    return trace(found.model, found.inputs, dynamic_shapes=found.dynamic_shapes)
