"""What a MODEL argument names: a file, a directory, a model of the zoo, or a callable."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rewriter.errors import InputError

if TYPE_CHECKING:
    from rewriter.program.program import Program
    from rewriter.verify.models import Model

__all__ = ["ZOO", "named_model", "open_model"]

ZOO = "zoo:"


def open_model(name: str) -> Program:
    """Load what ``name`` says.

    Raises
    ------
    InputError
        When there is no such file, zoo model or callable, or it cannot be read or traced.
    """
    from rewriter.verify.models import as_program

    return as_program(named_model(name))


def named_model(name: str) -> Model:
    """Load what ``name`` says; a ``module:callable`` is left for the comparison to call.

    Raises
    ------
    InputError
        When there is no such file or zoo model, or it cannot be read.
    """
    from rewriter.program.load import load
    from rewriter.verify.callables import is_callable_name

    if name.startswith(ZOO):
        return _from_zoo(name.removeprefix(ZOO))
    if Path(name).exists():
        return load(name)
    if is_callable_name(name):
        return name
    raise InputError(
        f"{name}: no such file or directory; expected .onnx, .pt2, a model directory, {ZOO}NAME or"
        " module:callable"
    )


def _from_zoo(name: str) -> Program:
    from rewriter import models_zoo
    from rewriter.program.load import load

    found = models_zoo.load(name)
    if isinstance(found.model, Path):
        return load(found.model)
    from rewriter.program.fx import trace

    return trace(found.model, found.inputs, dynamic_shapes=found.dynamic_shapes)
