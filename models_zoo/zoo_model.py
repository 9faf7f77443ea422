"""What the zoo hands out: a trained model with inputs to run it on and a measurement of its quality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Measure", "Run", "ZooModel"]

Run = Callable[..., tuple[Any, ...]]
"""A way to run a model: tensors or arrays in signature order in, a flat tuple of outputs out.

`rewriter.Program.run` is one, so a measurement works before and after a rewrite.
"""

Measure = Callable[[Run], dict[str, float]]
"""Runs a model on real data and returns its quality by metric name."""


@dataclass(frozen=True)
class ZooModel:
    """A trained model.

    Parameters
    ----------
    name
        Its name in `rewriter.models_zoo.CATALOG`.
    summary
        One line: what it is and where it is from.
    licence
        SPDX identifier.
    model
        An `torch.nn.Module` in evaluation mode, or the path of an ONNX file.
    inputs
        Example inputs in signature order: tensors for a module, arrays for a file.
    measure
        Measures its quality on real data.
    dynamic_shapes
        What `torch.export` is told about axes that may change; None for files.
    """

    name: str
    summary: str
    licence: str
    model: nn.Module | Path
    inputs: tuple[Any, ...]
    measure: Measure
    dynamic_shapes: tuple[dict[int, Any], ...] | None = None

    @cached_property
    def run(self) -> Run:
        """Run the model as it is: PyTorch, or ONNX Runtime on the CPU."""
        return _onnx_run(self.model) if isinstance(self.model, Path) else _torch_run(self.model)


def _torch_run(module: nn.Module) -> Run:
    import torch

    def run(*inputs: Any) -> tuple[Any, ...]:
        with torch.inference_mode():
            outputs = module(*(torch.as_tensor(x) for x in inputs))
        return outputs if isinstance(outputs, tuple) else (outputs,)

    return run


def _onnx_run(path: Path) -> Run:
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]

    def run(*inputs: Any) -> tuple[Any, ...]:
        return tuple(session.run(None, {n: np.asarray(x) for n, x in zip(names, inputs, strict=True)}))

    return run
