"""Running what a model was captured from: a module or another program, on the same named inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rewriter.errors import InputError
from rewriter.program.program import Arrays, Program
from rewriter.program.tensors import to_numpy, to_torch
from rewriter.verify.running import first_line, run_positional, runtime_errors

if TYPE_CHECKING:
    import torch

__all__ = ["Source", "source_runner"]

Source = Any
"""A `torch.nn.Module` or a `Program`."""


def source_runner(
    source: torch.nn.Module | Program, names: Sequence[str]
) -> Callable[[Arrays], list[np.ndarray]]:
    """Return a function from inputs by name to the source's outputs.

    A module is called by name where its ``forward`` has all the names, else by position.

    Raises
    ------
    InputError
        (by the returned function) when the module cannot be run on the inputs.
    """
    if isinstance(source, Program):
        return lambda inputs: run_positional(source, [inputs[name] for name in names])
    return lambda inputs: _run_module(source, {name: inputs[name] for name in names})


def _run_module(module: torch.nn.Module, inputs: Arrays) -> list[np.ndarray]:
    import torch
    from torch.utils import _pytree

    tensors = {name: to_torch(x) for name, x in inputs.items()}
    parameters = inspect.signature(module.forward).parameters
    by_name = set(tensors) <= set(parameters)
    try:
        with torch.no_grad():
            result = module(**tensors) if by_name else module(*tensors.values())
    except runtime_errors() as error:
        raise InputError(
            f"the source {type(module).__name__} cannot be run on the inputs: {first_line(error)}"
        ) from error
    return [to_numpy(x) for x in _pytree.tree_leaves(result) if isinstance(x, torch.Tensor)]
