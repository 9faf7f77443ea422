"""Programs traced from PyTorch: a `torch.export.ExportedProgram` with one read view and one edit verb."""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import cached_property
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from rewriter.errors import InputError
from rewriter.lower.torch_emitter import TorchEmitter
from rewriter.program.chains import Chains, chains, touched
from rewriter.program.collector import collector_paused
from rewriter.program.fx_apart import taken_apart
from rewriter.program.fx_edit import edited
from rewriter.program.fx_insert import inserted
from rewriter.program.fx_outputs import structured_names
from rewriter.program.fx_part import part
from rewriter.program.fx_view import bindings, hidden_outputs, view
from rewriter.program.graph import Graph
from rewriter.program.program import Arrays, Build, Insertion, Program, Replacement
from rewriter.program.pt2 import read_archive, write_archive
from rewriter.program.tensors import to_numpy, to_torch

if TYPE_CHECKING:
    from rewriter.algebra.prims import Prim

SITES = "rewriter.sites"
"""Metadata that lists what was rewritten, as JSON: site -> form, fidelity and what else is known."""

__all__ = ["FxProgram", "capture", "trace"]


def trace(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> FxProgram:
    """Capture a module as a program with `torch.export`.

    Parameters
    ----------
    module
        In the mode (training or evaluation) it is to be captured in.
    args, kwargs
        Example inputs. No two tensors may share memory: export would make them one input.
    dynamic_shapes
        As for `torch.export.export`.

    Raises
    ------
    InputError
        If example inputs share memory, or the module cannot be exported.
    """
    return capture(module, args, kwargs, dynamic_shapes, type(module).__name__)


def capture(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    dynamic_shapes: Any,
    source: str,
) -> FxProgram:
    """Capture a module under a name of its own; see `trace`."""
    _refuse_aliases(args, kwargs or {})
    said = StringIO()  # on a failure PyTorch prints the graph as far as it came
    try:
        with torch.no_grad(), _quiet(), redirect_stderr(said):
            exported = torch.export.export(module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
            made = FxProgram(_functional(exported), source)
    except Exception as error:  # torch.export raises whatever the module and its own passes raise
        reason = _telling(error, said.getvalue())
        raise InputError(f"{source} cannot be exported by torch.export: {reason}") from error
    sys.stderr.write(said.getvalue())
    return made


def _telling(error: Exception, printed: str) -> str:
    """Return the line of an error that says what happened, where, and what PyTorch suggests."""
    text, _, advice = str(error).partition("Suggested fixes:")
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    fixes = [line.strip() for line in advice.strip().partition("\n\n")[0].splitlines()]
    places = re.findall(r"# File: (\S+:\d+) in \w+, code: (.*)", printed)
    where = [f"at {places[-1][0]}: {places[-1][1].strip()}"] if places else []
    return "; ".join([first.partition(" For more information, run with")[0], *where, *fixes])


def _functional(exported: ExportedProgram) -> ExportedProgram:
    """Return a program without in-place operators, and without what only its tracing was interested in."""
    if exported.dialect == "TRAINING":
        exported = exported.run_decompositions({})
    for node in list(exported.graph.nodes):
        node.meta.pop("from_node", None)  # holds addresses: the same program would be saved as other bytes
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            # about dtypes, which the graph has already settled; it would hold scores alive
            exported.graph.erase_node(node)
    exported.graph_module.recompile()
    return exported


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what PyTorch warns about its own code when it copies descriptions of inputs."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        yield


def _refuse_aliases(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    seen: dict[int, int] = {}
    for at, leaf in enumerate(tree_leaves((args, kwargs))):
        if isinstance(leaf, torch.Tensor) and leaf.numel():
            first = seen.setdefault(leaf.untyped_storage().data_ptr(), at)
            if first != at:
                raise InputError(
                    f"example inputs {first} and {at} share memory, and export would merge them into one; "
                    "pass a clone of one of them"
                )


class FxProgram(Program):
    """A program that was traced from PyTorch.

    Parameters
    ----------
    exported
        Functional: the result of ``run_decompositions``.
    source
        A path, or the class name of the module.
    metadata
        Notes under keys that start with ``rewriter.``.
    """

    format = "fx"

    def __init__(
        self, exported: ExportedProgram, source: str, metadata: Mapping[str, str] | None = None
    ) -> None:
        self.exported = exported
        self.source = source
        self._metadata = dict(metadata or {})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FxProgram:
        """Open a ``.pt2`` archive.

        Raises
        ------
        InputError
            If the file is not one, or loading it could run code.
        """
        with _quiet():
            exported, metadata = read_archive(path)
            return cls(_functional(exported), os.fspath(path), metadata)

    @property
    def metadata(self) -> Mapping[str, str]:
        """Notes that are saved with the program."""
        return self._metadata

    @cached_property
    @collector_paused()
    def graph(self) -> Graph:
        """The read view; products of many tensors that hold an attention are shown as chains of two."""
        return view(self._apart) if self._chains else self._plain

    @cached_property
    def _plain(self) -> Graph:
        return view(self.exported)

    @cached_property
    def _chains(self) -> Chains:
        from rewriter.algebra.frontends.aten import translate

        def split(found: Chains) -> tuple[Graph, Mapping[str, Prim]]:
            graph = view(self._exported_apart(found))
            return graph, translate(graph)

        return chains(self._plain, lambda: translate(self._plain), split)

    def _exported_apart(self, found: Chains) -> ExportedProgram:
        return taken_apart(self.exported, self._plain, found) if found else self.exported

    @cached_property
    def _apart(self) -> ExportedProgram:
        """What `graph` is the view of."""
        return self._exported_apart(self._chains)

    def prims(self) -> Mapping[str, Prim]:
        """Return every tensor in primitive form."""
        return self._prims

    @cached_property
    @collector_paused()
    def _prims(self) -> Mapping[str, Prim]:
        from rewriter.algebra.frontends.aten import translate

        return translate(self.graph)

    @cached_property
    def output_names(self) -> tuple[str, ...]:
        """Keys of what the module returns (``logits``, ``past.0.k``) if it has any, else names of nodes."""
        return structured_names(self.exported) or self.graph.outputs

    @property
    def names_outputs(self) -> bool:
        """Whether what the module returns has keys: numbers of nodes shift with any change before them."""
        return self.output_names is not self.graph.outputs

    # running

    def run(self, *inputs: Any, **named: Any) -> tuple[Any, ...]:
        """Run without gradients; return a flat tuple of tensors."""
        given = self._bind(inputs, named)
        flat = [self._bindings[n] if n in self._bindings else given[n] for n in self._placeholders]
        with torch.no_grad():
            outputs = self.exported.graph_module(*flat)
        (returned,) = self.exported.graph.output_node().args
        pairs = zip(tree_leaves(outputs), tree_leaves(returned), strict=True)
        tensors = [value for value, node in pairs if isinstance(node, torch.fx.Node)]
        return tuple(tensors[hidden_outputs(self.exported) :])

    @cached_property
    def _bindings(self) -> dict[str, Any]:
        return bindings(self.exported)

    @cached_property
    def _placeholders(self) -> tuple[str, ...]:
        return tuple(n.name for n in self.exported.graph.nodes if n.op == "placeholder")

    def _bind(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
        names = self.graph.inputs
        if len(inputs) > len(names):
            raise InputError(
                f"{self.source} takes {len(names)} inputs ({', '.join(names)}), {len(inputs)} are given"
            )
        values = dict(zip(names, inputs, strict=False))
        for name, value in named.items():
            if name not in names or name in values:
                raise InputError(
                    f"{self.source} has no free input {name!r}; its inputs are {', '.join(names)}"
                )
            values[name] = value
        missing = [n for n in names if n not in values]
        if missing:
            raise InputError(f"{self.source} also needs {', '.join(missing)}")
        checked = {n: self._checked(n, values[n]) for n in names}
        self._check_dimensions(checked)
        return checked

    def _checked(self, name: str, given: Any) -> Any:
        value = self.graph.values[name]
        if value.shape is None or not isinstance(given, torch.Tensor | np.ndarray | np.generic):
            return given
        try:
            tensor = to_torch(given)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"input {name} is no tensor: {str(error).partition(chr(10))[0]}") from error
        wanted = getattr(torch, value.dtype or "float32")
        if tensor.dtype != wanted and torch.can_cast(tensor.dtype, wanted) and not wanted.is_floating_point:
            tensor = tensor.to(wanted)
        if tensor.dtype != wanted:
            raise InputError(f"input {name} is {tensor.dtype}, expected {wanted}")
        shape = value.shape or ()
        if tensor.dim() != len(shape) or any(
            n.static and int(n) != m for n, m in zip(shape, tensor.shape, strict=True)
        ):
            raise InputError(
                f"input {name} has shape {list(tensor.shape)}, expected [{', '.join(map(str, shape))}]"
            )
        return tensor

    def _check_dimensions(self, given: Mapping[str, Any]) -> None:
        """Refuse two lengths for one dimension."""
        seen: dict[str, tuple[str, int]] = {}
        for name, tensor in given.items():
            sizes = self.graph.values[name].shape or ()
            for size, n in zip(sizes, tensor.shape if isinstance(tensor, torch.Tensor) else (), strict=False):
                first, length = seen.setdefault(str(size), (name, n))
                if length != n:
                    raise InputError(
                        f"inputs {first} and {name} differ in the dimension {size}: {length} and {n}"
                    )

    def extract(self, inputs: Sequence[str], outputs: Sequence[str]) -> Callable[[Arrays], list[np.ndarray]]:
        """Return the part of the graph from ``inputs`` to ``outputs`` as a function of arrays."""
        return part(self._apart, self.graph, inputs, outputs)

    def emit(
        self, inputs: Sequence[str], build: Build, sample: Arrays, *, target: str = "native"
    ) -> Callable[[Arrays], list[np.ndarray]]:
        """Return a new computation as a function of arrays; ``target`` is ``"torch"`` or ``"triton"``."""
        emitter = _emitter(target)
        shapes = [self.graph.values[name].shape or () for name in inputs]

        def emitted(arrays: Arrays) -> list[np.ndarray]:
            tensors = [to_torch(arrays[n]) for n in inputs]
            with torch.no_grad():
                return [to_numpy(build(emitter(list(zip(tensors, shapes, strict=True))), tensors))]

        return emitted

    # editing

    def replace(self, replacements: Sequence[Replacement], *, target: str = "native") -> FxProgram:
        """Return a program with the edits made; weights are shared.

        ``target`` is ``"torch"``, or ``"triton"`` for fused kernels: see `rewriter.operators`.
        """
        emitter = _emitter(target)
        done: dict[str, dict[str, str]] = json.loads(self._metadata.get(SITES, "{}"))
        done |= {r.name: dict(sorted(r.metadata.items())) for r in replacements}
        notes = {**self._metadata, SITES: json.dumps(done, sort_keys=True)}
        named = {name for r in replacements for name in (r.output, *r.inputs)}
        with _quiet(), collector_paused():
            exported = self._exported_apart(touched(self._chains, named))
            return FxProgram(edited(exported, self.graph, replacements, emitter), self.source, notes)

    def insert(
        self,
        insertions: Sequence[Insertion],
        notes: Mapping[str, Mapping[str, str]],
        *,
        target: str = "native",
    ) -> FxProgram:
        """Return a program with new values; weights are shared. ``target`` is as for `replace`."""
        emitter = _emitter(target)
        done: dict[str, dict[str, str]] = json.loads(self._metadata.get(SITES, "{}"))
        done |= {name: dict(sorted(about.items())) for name, about in notes.items()}
        known = {**self._metadata, SITES: json.dumps(done, sort_keys=True)}
        named = {name for i in insertions for name in (i.instead, *i.inputs, *(i.readers or ()))}
        with _quiet(), collector_paused():
            exported = self._exported_apart(touched(self._chains, named))
            return FxProgram(inserted(exported, self.graph, insertions, emitter), self.source, known)

    def module(self) -> torch.nn.Module:
        """Return the program as a module: trains, compiles, exports again."""
        with _quiet():
            return self.exported.module()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a ``.pt2`` archive atomically."""
        if os.path.isfile(self.source) and os.path.exists(path) and os.path.samefile(self.source, path):
            raise InputError(f"{path} is the model that was read, which is never changed; name another file")
        with _quiet():
            write_archive(self.exported, path, self._metadata)


def _emitter(target: str) -> type[TorchEmitter]:
    if target == "triton":
        from rewriter.lower.triton_emitter import TritonEmitter

        return TritonEmitter
    if target not in ("native", "torch"):
        raise InputError(f"target {target!r} is not one of an FX program; expected 'torch' or 'triton'")
    return TorchEmitter
