"""A module that is run as it is, eagerly, with the signature of the program that it is compared with."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from rewriter.algebra.prims import Prim
from rewriter.errors import InputError
from rewriter.program.graph import Graph
from rewriter.program.program import Arrays, Build, Program, Replacement
from rewriter.program.tensors import to_torch
from rewriter.verify.running import first_line, runtime_errors

if TYPE_CHECKING:
    from rewriter.sites.refusal import Refusal
    from rewriter.sites.site import AttentionSite

__all__ = ["ModuleProgram"]


class ModuleProgram(Program):
    """A `torch.nn.Module` that is not traced: it can be run, in evaluation mode, and nothing else.

    It is called by name where its ``forward`` takes the inputs in another order, else by position. Its
    outputs are the tensors of whatever it returns, nested as it may be; they go by key where the keys are
    the names of the outputs, else by position.

    Parameters
    ----------
    module
        What to run. Its mode is restored after every call.
    like
        The program whose signature it is to have.
    """

    format = "module"

    def __init__(self, module: torch.nn.Module, like: Program) -> None:
        self._module, self._like = module, like
        self.source = type(module).__name__

    @property
    def weights(self) -> torch.nn.Module:
        """The module."""
        return self._module

    @property
    def like(self) -> Program:
        """The program whose signature it has."""
        return self._like

    @property
    def graph(self) -> Graph:
        """The signature of the other program, without nodes."""
        graph = self._like.graph
        values = {name: graph.values[name] for name in (*graph.inputs, *graph.outputs)}
        return Graph((), values, graph.inputs, graph.outputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Those of the other program."""
        return self._like.output_names

    @property
    def names_outputs(self) -> bool:
        """Whether these names were given."""
        return self._like.names_outputs

    @property
    def metadata(self) -> Mapping[str, str]:
        """Nothing."""
        return {}

    def prims(self) -> Mapping[str, Prim]:
        """Return the primitive form of the other program: what its inputs are looked up in."""
        return self._like.prims()

    @property
    def sites(self) -> tuple[AttentionSite, ...]:
        """None: there is no graph to find them in."""
        return ()

    @property
    def refused(self) -> tuple[Refusal, ...]:
        """None."""
        return ()

    def run(self, *inputs: Any, **named: Any) -> tuple[Any, ...]:
        """Run without gradients.

        Raises
        ------
        InputError
            When the module cannot be run on the inputs, or gives another number of tensors.
        """
        names = self.graph.inputs
        tensors = {
            name: to_torch(x) for name, x in {**dict(zip(names, inputs, strict=False)), **named}.items()
        }
        parameters = tuple(inspect.signature(self._module.forward).parameters)
        by_name = set(names) <= set(parameters) and parameters[: len(names)] != names
        try:
            with torch.no_grad(), _evaluating(self._module):
                result = self._module(**tensors) if by_name else self._module(*(tensors[n] for n in names))
        except runtime_errors() as error:
            raise InputError(f"{self.source} cannot be run on the inputs: {first_line(error)}") from error
        return self._ordered(result)

    def _ordered(self, result: Any) -> tuple[Any, ...]:
        leaves = [(_key(path), x) for path, x in pytree.tree_flatten_with_path(result)[0]]
        found = [(key, x) for key, x in leaves if isinstance(x, torch.Tensor)]
        keys, wanted = [key for key, _ in found], self.output_names
        if len(found) != len(wanted):
            raise InputError(
                f"{self.source} gives {len(found)} outputs ({', '.join(keys)}) and {self._like.source}"
                f" {len(wanted)} ({', '.join(wanted)})"
            )
        if set(keys) == set(wanted) and len(set(keys)) == len(keys):
            return tuple(dict(found)[name] for name in wanted)
        return tuple(x for _, x in found)

    def extract(self, inputs: Sequence[str], outputs: Sequence[str]) -> Callable[[Arrays], list[np.ndarray]]:
        """Refuse."""
        raise self._refusal()

    def emit(
        self, inputs: Sequence[str], build: Build, sample: Arrays, *, target: str = "native"
    ) -> Callable[[Arrays], list[np.ndarray]]:
        """Refuse."""
        raise self._refusal()

    def replace(self, replacements: Sequence[Replacement], *, target: str = "native") -> Program:
        """Refuse."""
        raise self._refusal()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Refuse."""
        raise self._refusal()

    def _refusal(self) -> InputError:
        return InputError(
            f"{self.source} is run as it is and has no graph; rewriter.trace(module, args) captures one"
        )


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    training = [m for m in module.modules() if m.training]
    # exported modules refuse eval(), which does the same
    for m in training:
        m.training = False
    try:
        yield
    finally:
        for m in training:
            m.training = True


def _key(path: Sequence[Any]) -> str:
    return ".".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path)
