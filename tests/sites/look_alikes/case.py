"""One look-alike: what is computed, and what it must not be called."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

import rewriter

__all__ = ["QKV", "SAME", "LookAlike", "kt", "weight"]

QKV = ((2, 4, 6, 8), (2, 4, 7, 8), (2, 4, 7, 8))
"""Shapes of queries, keys and values of which no two axes are mistaken for one another but the features."""

SAME = ((4, 4, 4, 4),) * 3
"""The same with every size equal: only the algebra tells the axes apart."""


@dataclass(frozen=True)
class LookAlike:
    """Something that is not attention, or not the attention that it seems to be.

    Parameters
    ----------
    function
        What is computed.
    shapes
        Of its inputs, which are normally distributed.
    kinds
        What a site in it may be called. ``attention`` is here only where that is exactly what it is,
        whatever it looks like: the test compares numbers.
    traits
        A site that is called attention must have one of these; empty if none is needed.
    reason
        One of these words is in a reason why there is no site; empty where nothing has to be said.
    constant
        What a site that is called attention must be said to have of constant operands.
    dtypes
        Of the inputs that are not floating point, by position.
    """

    function: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...] = QKV
    kinds: tuple[str, ...] = ()
    traits: tuple[str, ...] = ()
    reason: tuple[str, ...] = ()
    constant: tuple[str, ...] = ()
    dtypes: tuple[tuple[int, torch.dtype], ...] = ()

    def inputs(self, seed: int = 0) -> tuple[Tensor, ...]:
        """Return random inputs."""
        generator = torch.Generator().manual_seed(seed)
        kinds = dict(self.dtypes)
        made = []
        for at, shape in enumerate(self.shapes):
            x = torch.randn(shape, generator=generator)
            kind = kinds.get(at)
            made.append(x if kind is None else x > -0.4 if kind is torch.bool else (x * 3).to(kind))
        return tuple(made)

    def traced(self) -> rewriter.Program:
        """Return the program, after one call that makes its weights."""
        self.function(*self.inputs())
        return rewriter.trace(_Module(self.function), self.inputs())


class _Module(torch.nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def kt(k: Tensor) -> Tensor:
    """Return keys with their last two axes swapped."""
    return k.transpose(-2, -1)


@cache
def weight(*shape: int) -> Tensor:
    """Return a fixed random tensor: a weight of the model. It is made before the model is traced."""
    made = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    return made / math.sqrt(shape[-1])
