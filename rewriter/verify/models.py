"""What may be compared: programs, files, modules, and callables that return one of these."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from rewriter.errors import InputError
from rewriter.program.program import Program
from rewriter.verify.callables import find_callable, is_callable_name

if TYPE_CHECKING:
    import torch

    Model = Program | torch.nn.Module | tuple[Any, ...] | str | os.PathLike[str]
else:
    # torch is not imported for the name of a type
    Model = Any

__all__ = ["Model", "as_program", "as_programs"]

MOST_PARTS = 4
"""Of ``(module, args, kwargs, dynamic_shapes)``."""


def as_program(model: Model, like: Program | None = None) -> Program:
    """Return a program for a model.

    Parameters
    ----------
    model
        A `Program`; the path of a model file; a `torch.nn.Module`;
        ``(module, args[, kwargs[, dynamic_shapes]])``, which is traced; or ``"module:callable"`` that returns
        one of these without being given anything.
    like
        The other program, whose inputs a module without example inputs takes.

    Raises
    ------
    InputError
        When there is no such file or callable, it cannot be read or traced, or there is no telling what a
        module takes.
    """
    if isinstance(model, Program):
        return model
    if isinstance(model, str | os.PathLike):
        name = os.fspath(model)
        if is_callable_name(name) and not Path(name).exists():
            return as_program(_called(name), like)
        from rewriter.program.load import load

        return load(name)
    if _is_module(model):
        return _module_program(model, like)
    if isinstance(model, tuple) and 2 <= len(model) <= MOST_PARTS and _is_module(model[0]):
        return _traced(*model)
    raise InputError(
        f"a model of type {type(model).__name__} is not known; expected a program, a path, a module or"
        " (module, args[, kwargs[, dynamic_shapes]])"
    )


def as_programs(*models: Model) -> tuple[Program, ...]:
    """Return all as programs; a module without example inputs takes those of the first that is a program.

    Raises
    ------
    InputError
        As `as_program`.
    """
    found = [_unnamed(model) for model in models]
    programs = [None if _is_module(model) else as_program(model) for model in found]
    like = next((p for p in programs if p is not None), None)
    return tuple(p if p is not None else as_program(m, like) for p, m in zip(programs, found, strict=True))


def _unnamed(model: Model) -> Any:
    """Return what a ``module:callable`` returns, and anything else as it is."""
    named = isinstance(model, str) and is_callable_name(model) and not Path(model).exists()
    return _called(str(model)) if named else model


def _called(spec: str) -> Any:
    try:
        return find_callable(spec, "model")()
    except InputError:
        raise
    except Exception as error:  # the user's own function raises what it likes
        raise InputError(f"model {spec} failed: {type(error).__name__}: {error}") from error


def _is_module(model: object) -> TypeGuard[torch.nn.Module]:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def _module_program(module: torch.nn.Module, like: Program | None) -> Program:
    if like is None:
        raise InputError(
            f"what {type(module).__name__} takes is not known; give (module, args) with example inputs, or"
            " compare it with a program"
        )
    from rewriter.verify.module_program import ModuleProgram

    return ModuleProgram(module, like)


def _traced(module: torch.nn.Module, args: Any, kwargs: Any = None, dynamic_shapes: Any = None) -> Program:
    from rewriter.program.fx import trace

    if not isinstance(args, tuple) or not isinstance(kwargs, dict | None):
        raise InputError(
            f"{type(module).__name__}: expected (module, args[, kwargs[, dynamic_shapes]]) with a tuple of"
            f" args and a dict of kwargs, found {type(args).__name__} and {type(kwargs).__name__}"
        )
    return trace(module, args, kwargs, dynamic_shapes)
