"""A program: a captured model that can be read, run, edited and saved, whatever it came from."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from rewriter.program.collector import collector_paused
from rewriter.program.graph import Graph

if TYPE_CHECKING:
    import torch

    from rewriter.algebra.prims import Prim
    from rewriter.algebra.sizes import Size
    from rewriter.blocks.block import Block, NearMiss
    from rewriter.blocks.fusion import Fusion
    from rewriter.lower.emitter import Emitter
    from rewriter.sites.refusal import Refusal
    from rewriter.sites.site import AttentionSite

__all__ = ["OUTPUT", "Arrays", "Build", "Insertion", "Program", "Replacement"]

OUTPUT = "<output>"
"""Stands for the outputs of the graph among the readers of a value."""

Arrays = Mapping[str, np.ndarray]
"""Values by name. bfloat16 travels as `ml_dtypes.bfloat16`."""

Build = Callable[["Emitter", Sequence[Any]], Any]
"""Emits a computation: ``build(emitter, inputs) -> output``, tensors being the emitter's own handles."""


@dataclass(frozen=True)
class Replacement:
    """One edit: the value ``output`` is computed in a new way from ``inputs``.

    Parameters
    ----------
    output
        Name of the value whose readers get the new result. Shape and dtype must stay the same.
    inputs
        Names of values that exist before ``output`` and do not depend on it.
    build
        Emits the new computation.
    name
        Name of the site it is for: a prefix of the new nodes' names and of the ONNX function.
    metadata
        What is written into the graph about it (``{"form": "window:window=512", "fidelity": …}``).
    """

    output: str
    inputs: tuple[str, ...]
    build: Build
    name: str
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Insertion:
    """One edit that may change shapes: a new value, which some readers of another value read in its place.

    Parameters
    ----------
    name
        Of the new value. Later insertions may read it.
    inputs
        Names of values that the new one is computed from: of the graph, or inserted before.
    shapes
        Of the inputs, as they are after the insertions before this one.
    build
        Emits the new value.
    instead
        The value whose readers read the new one, or None.
    readers
        Values whose nodes read the new value in place of ``instead``, `OUTPUT` for the outputs of the graph;
        None for everything that reads it.
    function
        Name of the function of the model that the computation becomes, where the format has functions and
        it is not inlined; None for plain nodes.
    metadata
        What is written into the graph about it.
    """

    name: str
    inputs: tuple[str, ...]
    shapes: tuple[tuple[Size, ...], ...]
    build: Build
    instead: str | None = None
    readers: frozenset[str] | None = None
    function: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


class Program(ABC):
    """A captured model. Immutable: `replace` returns another program that shares the weights."""

    format: str
    """``"fx"`` or ``"onnx"``."""

    source: str
    """Where it came from: a path, or the class name of a module."""

    @property
    @abstractmethod
    def graph(self) -> Graph:
        """The read view."""

    @abstractmethod
    def prims(self) -> Mapping[str, Prim]:
        """Return every value of the graph in primitive form (translated once, then kept)."""

    @abstractmethod
    def run(self, *inputs: Any, **named: Any) -> tuple[Any, ...]:
        """Run in the native runtime (PyTorch, or ONNX Runtime on the CPU); return a flat tuple of outputs.

        Inputs may be torch tensors or numpy arrays, by position or by name.
        """

    @abstractmethod
    def extract(self, inputs: Sequence[str], outputs: Sequence[str]) -> Callable[[Arrays], list[np.ndarray]]:
        """Return a native-runtime function of the part of the graph from ``inputs`` to ``outputs``.

        Weights are bound; graph inputs that the part reads must be among ``inputs``.
        """

    @abstractmethod
    def emit(
        self, inputs: Sequence[str], build: Build, sample: Arrays, *, target: str = "native"
    ) -> Callable[[Arrays], list[np.ndarray]]:
        """Return a native-runtime function of a new computation, as `replace` would insert it.

        ``sample`` gives one array per input: dtypes, ranks and, where the graph has numbers, sizes. What
        ``target`` is by default and may be is a matter of the format.
        """

    @abstractmethod
    def replace(self, replacements: Sequence[Replacement], *, target: str = "native") -> Program:
        """Return a program with the edits made and what nothing reads any more removed."""

    def insert(
        self,
        insertions: Sequence[Insertion],
        notes: Mapping[str, Mapping[str, str]],
        *,
        target: str = "native",
    ) -> Program:
        """Return a program with new values, in order, and what nothing reads any more removed.

        Shapes between them may change; those of the outputs stay. ``notes`` are kept with the program: what
        was done to each site.
        """
        raise TypeError(f"{self.source}: no values can be inserted into a program in {self.format}")

    def tidied(self) -> tuple[Program, Mapping[str, int]]:
        """Return the program without what it computes for nothing, and how many nodes are gone, by kind.

        The program itself and nothing, where there is nothing to remove.
        """
        return self, {}

    def hoisted(self) -> tuple[Program, int]:
        """Return the program with what does not change in loops in front of them, and how many nodes that is.

        The program itself and 0, where there is nothing to move.
        """
        return self, 0

    @abstractmethod
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model file atomically: it is complete, or it is not there."""

    def module(self) -> torch.nn.Module:
        """Return an `torch.nn.Module` (FX programs only): trains, compiles, exports again."""
        raise TypeError(
            f"{self.source}: only a program traced from PyTorch has a module; this is {self.format}"
        )

    @property
    @abstractmethod
    def metadata(self) -> Mapping[str, str]:
        """Model metadata; what the tool writes is under keys that start with ``rewriter.``."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """What its outputs are called, in the order of ``graph.outputs``."""
        return self.graph.outputs

    @property
    def names_outputs(self) -> bool:
        """Whether somebody gave these names, so that they say more than positions."""
        return True

    @property
    def files(self) -> frozenset[str]:
        """Every file that it was read from and still reads, links resolved."""
        return frozenset()

    @cached_property
    @collector_paused()
    def _raised(self) -> tuple[tuple[AttentionSite, ...], tuple[Refusal, ...]]:
        from rewriter.sites import raise_sites

        return raise_sites(self)

    @property
    def sites(self) -> tuple[AttentionSite, ...]:
        """Every place where attention is computed, in graph order."""
        return self._raised[0]

    @cached_property
    @collector_paused()
    def _weighed(self) -> tuple[tuple[Block, ...], tuple[NearMiss, ...]]:
        from rewriter.blocks import blocks

        return blocks(self)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Gates and fusion blocks, in graph order."""
        return self._weighed[0]

    @property
    def refused_blocks(self) -> tuple[NearMiss, ...]:
        """What reads like a gate and is none, with the reason."""
        return self._weighed[1]

    @cached_property
    @collector_paused()
    def fusion(self) -> Fusion:
        """How the attention of a model of several inputs joins them."""
        from rewriter.blocks.fusion import fusion

        return fusion(self)

    @property
    def refused(self) -> tuple[Refusal, ...]:
        """Near-misses: what looked like attention and is not, with the reason."""
        return self._raised[1]
