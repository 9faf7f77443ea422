"""Running a program on named arrays, with every runtime's way of failing turned into one error."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from rewriter.errors import RewriterError
from rewriter.program.program import Arrays, Program
from rewriter.program.tensors import to_numpy

__all__ = ["RunError", "can_run", "first_line", "run", "runtime_errors"]


class RunError(RewriterError):
    """A runtime could not run a model on given inputs."""


def run(program: Program, inputs: Arrays) -> list[np.ndarray]:
    """Run a program on inputs by name and return its outputs as numpy arrays.

    Raises
    ------
    RunError
        When the runtime refuses the inputs or fails.
    """
    return run_positional(program, [inputs[name] for name in program.graph.inputs])


def can_run(program: Program, inputs: Arrays) -> bool:
    """Whether a program runs on inputs."""
    try:
        run(program, inputs)
    except RunError:
        return False
    return True


def run_positional(program: Program, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Run a program on inputs in the order of its signature; see `run`."""
    try:
        return [to_numpy(x) for x in program.run(*inputs)]
    except RewriterError as error:
        raise RunError(first_line(error).rstrip(".")) from error
    except runtime_errors() as error:
        raise RunError(f"{program.source} cannot be run: {first_line(error)}") from error


def runtime_errors() -> tuple[type[Exception], ...]:
    """Return what PyTorch and ONNX Runtime raise when they cannot run something."""
    found: list[type[Exception]] = [RuntimeError, ValueError, TypeError, IndexError, KeyError, AssertionError]
    state = sys.modules.get("onnxruntime.capi.onnxruntime_pybind11_state")
    if state is not None:
        # these derive from nothing but Exception
        found += [t for t in vars(state).values() if isinstance(t, type) and issubclass(t, Exception)]
    return tuple(found)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where there is none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
