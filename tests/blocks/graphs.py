"""Programs of functions and modules over maps, in both kinds of graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import rewriter
from rewriter.models_zoo import gates
from rewriter.program.program import Program

__all__ = ["Computed", "exported", "maps", "of_gate", "traced"]

CHANNELS = 16


class Computed(nn.Module):
    """A function of maps."""

    def __init__(self, fn: Callable[..., Tensor]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, *x: Tensor) -> Tensor:
        return self.fn(*x)


def maps(count: int, height: int = 7, width: int = 5, batch: int = 2, seed: int = 0) -> tuple[Tensor, ...]:
    """Return random maps ``[batch, CHANNELS, height, width]``."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, CHANNELS, height, width, generator=generator) for _ in range(count))


def traced(module: nn.Module, given: tuple[Tensor, ...]) -> Program:
    return rewriter.trace(module.eval(), given)


def exported(module: nn.Module, given: tuple[Tensor, ...], folder: Path) -> Program:
    path = folder / "model.onnx"
    names = [f"x{k}" for k in range(len(given))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), given, str(path), opset_version=17, dynamo=False, input_names=names)
    return rewriter.load(path)


def of_gate(name: str, folder: Path, kind: str) -> Program:
    """Return the program of a module of the zoo, as ``fx`` or ``onnx``."""
    module = gates.build(name, CHANNELS)
    given = maps(module.maps)
    return traced(module, given) if kind == "fx" else exported(module, given, folder)
