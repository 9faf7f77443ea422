"""What is measured: small modules that spell out what a rule or a form makes cheaper."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import torch

__all__ = ["Template", "templates"]

GROUPS = ("plain", "gates", "around_attention")
"""Modules of this package with a tuple ``TEMPLATES``; one that is not there is left out."""


@dataclass(frozen=True)
class Template:
    """A subgraph and what is applied to it.

    Parameters
    ----------
    name
        Of the row.
    apply
        As for ``rewriter rewrite --apply``: a rule, or a form with its parameters.
    build
        Returns a module and its inputs for a size.
    sizes
        Two of them, small and large; ``build`` says what they mean.
    where
        Architectures that have it, as `timm` or `transformers` call them.
    opset
        Of the ONNX file.
    targets
        What is measured: ``torch``, ``onnx``, ``ort``.
    """

    name: str
    apply: str
    build: Callable[[int], tuple[torch.nn.Module, tuple[torch.Tensor, ...]]]
    sizes: tuple[int, int]
    where: str = ""
    opset: int = 18
    targets: tuple[str, ...] = ("torch", "onnx")


def templates() -> Iterator[Template]:
    """Yield all templates, group by group."""
    for group in GROUPS:
        if find_spec(f"benchmarks.fusion.{group}") is not None:
            yield from import_module(f"benchmarks.fusion.{group}").TEMPLATES
