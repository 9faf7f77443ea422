"""ONNX programs: read from files, run by ONNX Runtime, edited through `onnx_ir`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from rewriter.algebra.sizes import Size
from rewriter.errors import InputError
from rewriter.lower.onnx_emitter import OnnxEmitter, opset_of_target
from rewriter.lower.onnx_writer import onnx_type
from rewriter.program.chains import Chains, chains, touched
from rewriter.program.collector import collector_paused
from rewriter.program.graph import Graph, Value
from rewriter.program.onnx_apart import taken_apart
from rewriter.program.onnx_check import standard_opset
from rewriter.program.onnx_compiled import Compiled
from rewriter.program.onnx_edit import replaced
from rewriter.program.onnx_file import ModelFile, read_message, read_model
from rewriter.program.onnx_graph import function_views, graph_view
from rewriter.program.onnx_hoist import hoisted
from rewriter.program.onnx_insert import inserted
from rewriter.program.onnx_message import Message, message_of
from rewriter.program.onnx_opset import convert_opset
from rewriter.program.onnx_parts import cut_out, main_values, written
from rewriter.program.onnx_save import write_model
from rewriter.program.onnx_session import Session
from rewriter.program.onnx_tidy import tidied
from rewriter.program.program import Arrays, Build, Insertion, Program, Replacement
from rewriter.program.stand_ins import read_for_size, stand_ins

if TYPE_CHECKING:
    from rewriter.algebra.prims import Prim

__all__ = ["OnnxProgram"]


class OnnxProgram(Program):
    """A model in ONNX.

    Parameters
    ----------
    model
        The model, or a message of it (whose weights are inline).
    source
        What messages call it.
    """

    format = "onnx"

    def __init__(self, model: ir.Model | onnx.ModelProto, source: str = "model") -> None:
        self.source = source
        self._origin = read_message(model, source) if isinstance(model, onnx.ModelProto) else model
        self._external = False
        self._sources: frozenset[str] = frozenset()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> OnnxProgram:
        """Read a model file; weights stay on disk until they are used.

        Raises
        ------
        InputError
            If it is not a valid ONNX model of opset 11 or later.
        """
        file = read_model(path)
        program = cls.__new__(cls)
        program.source, program._origin = os.fspath(path), file
        program._external, program._sources = file.external, file.files
        return program

    @property
    def files(self) -> frozenset[str]:
        """The model's file and those of its external data, links resolved; none for one made in memory."""
        return self._sources

    @cached_property
    def model(self) -> ir.Model:
        """The model, to edit and to run; it must not be changed."""
        return self._origin.model if isinstance(self._origin, ModelFile) else self._origin

    @cached_property
    def _message(self) -> Message:
        return self._origin.message if isinstance(self._origin, ModelFile) else message_of(self._origin)

    @cached_property
    def opset(self) -> int:
        """Version of the standard operators."""
        return standard_opset(self._message.proto.opset_import) or 0

    @cached_property
    def metadata(self) -> Mapping[str, str]:
        """Model metadata; what was rewritten is under ``rewriter.sites``, as JSON."""
        return {entry.key: entry.value for entry in self._message.proto.metadata_props}

    @cached_property
    @collector_paused()
    def graph(self) -> Graph:
        """The read view; shapes and types are inferred.

        Products of many tensors that hold an attention are shown as chains of two.
        """
        return graph_view(message_of(self._apart)) if self._chains else self._plain

    @cached_property
    def _plain(self) -> Graph:
        return graph_view(self._message)

    @cached_property
    def _chains(self) -> Chains:
        def split(found: Chains) -> tuple[Graph, Mapping[str, Prim]]:
            graph = graph_view(message_of(taken_apart(self.model, found)))
            return graph, self._translated(graph)

        return chains(self._plain, lambda: self._translated(self._plain), split)

    def _model_apart(self, found: Chains) -> ir.Model:
        return taken_apart(self.model, found) if found else self.model

    @cached_property
    def _apart(self) -> ir.Model:
        """What `graph` is the view of."""
        return self._model_apart(self._chains)

    @cached_property
    def _values(self) -> Mapping[str, ir.Value]:
        return main_values(self._apart)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return self.graph.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return self.graph.outputs

    @cached_property
    @collector_paused()
    def _prims(self) -> Mapping[str, Prim]:
        return self._translated(self.graph)

    def _translated(self, graph: Graph) -> Mapping[str, Prim]:
        from rewriter.algebra.frontends.onnx import translate

        return translate(graph, self.opset, function_views(self._message))

    def prims(self) -> Mapping[str, Prim]:
        """Return every value of the graph in primitive form."""
        return self._prims

    @cached_property
    def _compiled(self) -> Compiled:
        return Compiled()

    @cached_property
    def _session(self) -> Session:
        return Session(self.model, self.source)

    def run(self, *inputs: Any, **named: Any) -> tuple[np.ndarray, ...]:
        """Run in ONNX Runtime on the CPU.

        Parameters
        ----------
        *inputs, **named
            numpy arrays, torch tensors or numbers, by position and by name. Casts that lose nothing
            are made. Inputs that have a default need not be given, and are given by name.

        Raises
        ------
        InputError
            If an input is missing, unknown, or does not fit.
        """
        names, optional = self.graph.inputs, self.graph.held
        if len(inputs) > len(names):
            raise InputError(
                f"{self.source} takes {len(names)} inputs ({', '.join(names)}); {len(inputs)} were given."
            )
        given = dict(zip(names, inputs, strict=False))
        for name, value in named.items():
            if name in given or (name not in names and name not in optional):
                what = "is given twice" if name in given else "is not an input"
                every = ", ".join((*names, *optional))
                raise InputError(f"{name!r} {what} of {self.source}; its inputs are {every}.")
            given[name] = value
        missing = [name for name in names if name not in given]
        if missing:
            raise InputError(
                f"{self.source} needs the input {_described(self.graph.values[missing[0]])}; it is missing."
            )
        return tuple(self._session({name: _fitted(x, self.graph.values[name]) for name, x in given.items()}))

    def extract(self, inputs: Sequence[str], outputs: Sequence[str]) -> Callable[[Arrays], list[np.ndarray]]:
        """Return ONNX Runtime's function of a part of the graph.

        Raises
        ------
        InputError
            If the part reads a graph input that is not given, or cannot run alone.
        """
        for name in (*inputs, *outputs):
            if name not in self.graph.values:
                raise InputError(f"{self.source} has no value {name!r}.")
        if not outputs:
            return lambda arrays: []
        sized = read_for_size(self.graph, self.prims(), inputs, outputs)
        dtypes = {name: self.graph.values[name].dtype for name in (*inputs, *sized)}
        known = {name: dtype for name, dtype in dtypes.items() if dtype is not None}

        def compile_with(more: Mapping[str, str]) -> Callable[[Arrays], list[np.ndarray]]:
            types = {**known, **more}
            part = cut_out(self._apart, self.graph, (*inputs, *sized), outputs, types, self._values)
            session = self._compiled(part, f"a part of {self.source}")
            if not sized:
                return session
            return lambda arrays: session({**stand_ins(sized, self.prims(), arrays), **arrays})

        if len(known) == len(dtypes):
            return compile_with({})
        sessions: dict[tuple[str, ...], Callable[[Arrays], list[np.ndarray]]] = {}

        def run(arrays: Arrays) -> list[np.ndarray]:
            more = {name: str(arrays[name].dtype) for name in dtypes if name not in known}
            key = tuple(more.values())
            if key not in sessions:
                sessions[key] = compile_with(more)
            return sessions[key](arrays)

        return run

    def _type(self, name: str, sample: np.ndarray | None = None) -> tuple[tuple[Size, ...], str]:
        """Return shape and dtype of a value, the shape as the algebra knows it."""
        prim = self.prims().get(name)
        value = self.graph.values[name]
        shape = value.shape if prim is None else prim.shape
        dtype = value.dtype or (None if prim is None else prim.dtype)
        if sample is not None:
            dtype = dtype or str(sample.dtype)
            if shape is None or len(shape) != sample.ndim:
                shape = tuple(Size.symbol(f"{name}[{axis}]") for axis in range(sample.ndim))
        if shape is None or dtype is None:
            raise InputError(
                f"{self.source}: the {'rank' if shape is None else 'type'} of {name!r} is not known."
            )
        return shape, dtype

    def emit(
        self, inputs: Sequence[str], build: Build, sample: Arrays, *, target: str = "onnx"
    ) -> Callable[[Arrays], list[np.ndarray]]:
        """Return ONNX Runtime's function of a new computation; ``target`` as for `replace`.

        Raises
        ------
        EmitError
            If the target cannot spell it.
        InputError
            If ONNX Runtime cannot run it.
        """
        # a prefix, because values of the model may be named as the emitter names its own
        emitter = OnnxEmitter(max(self.opset, opset_of_target(target) or 0), target, "emitted/")
        part = written(self.model, inputs, lambda name: self._type(name, sample[name]), build, emitter)
        return self._compiled(part, f"a new part of {self.source}")

    def replace(
        self, replacements: Sequence[Replacement], *, target: str = "onnx", inline: bool = False
    ) -> OnnxProgram:
        """Return a program with the edits made.

        Parameters
        ----------
        replacements
            The edits. Each becomes one call of a function in the model, or plain nodes.
        target
            ``"onnx"``, ``"onnx:23"``… (the model is converted to that opset if it is older) or ``"ort"``.
        inline
            Write plain nodes.

        Raises
        ------
        EmitError
            If the target cannot spell a computation.
        InputError
            If the model is newer than the opset, or cannot be converted to it.
        """
        named = {name for r in replacements for name in (r.output, *r.inputs)}
        model = self._model_apart(touched(self._chains, named))
        model = convert_opset(model, target, self.source)
        program = OnnxProgram(replaced(model, replacements, self._type, target, inline), self.source)
        program._external, program._sources = self._external, self._sources
        return program

    def insert(
        self,
        insertions: Sequence[Insertion],
        notes: Mapping[str, Mapping[str, str]],
        *,
        target: str = "onnx",
        inline: bool = False,
    ) -> OnnxProgram:
        """Return a program with new values; ``target`` and ``inline`` as for `replace`.

        Raises
        ------
        EmitError
            If the target cannot spell a computation.
        InputError
            If the model is newer than the opset, or cannot be converted to it.
        """
        named = {name for i in insertions for name in (i.instead, *i.inputs, *(i.readers or ()))}
        model = self._model_apart(touched(self._chains, named))
        model = convert_opset(model, target, self.source)
        model = inserted(model, insertions, notes, self._type, target, inline)
        program = OnnxProgram(model, self.source)
        program._external, program._sources = self._external, self._sources
        return program

    def tidied(self) -> tuple[OnnxProgram, Mapping[str, int]]:
        """Return the program without what it computes for nothing, and how many nodes are gone, by kind.

        Raises
        ------
        RewriterError
            When a pass cannot cope with the model.
        """
        model, removed = tidied(self.model, self._plain)
        if not removed:
            return self, {}
        program = OnnxProgram(model, self.source)
        program._external, program._sources = self._external, self._sources
        return program, removed

    def hoisted(self) -> tuple[OnnxProgram, int]:
        """Return the program with what a loop does not change in front of it, and how many nodes that is."""
        model, moved = hoisted(self.model)
        if not moved:
            return self, 0
        program = OnnxProgram(model, self.source)
        program._external, program._sources = self._external, self._sources
        return program, moved

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model atomically, with its weights beside it if the source had them so.

        Raises
        ------
        InputError
            If the place is not writable, or is a file that the model was read from.
        """
        write_model(self.model, path, self._external, self._sources)


def _described(value: Value) -> str:
    shape = "any shape" if value.shape is None else "[" + ", ".join(map(str, value.shape)) + "]"
    return f"{value.name!r} ({value.dtype or 'any type'} {shape})"


def _fitted(x: Any, expected: Value) -> np.ndarray:
    """Return an input as the array that the model expects."""
    array = _array(x)
    if expected.dtype is None:
        return array
    wanted = onnx_type(expected.dtype).numpy()
    if expected.dtype == "string":
        return array.astype(object)
    if array.dtype != wanted:
        python_numbers = not hasattr(x, "dtype")
        cast = array.astype(wanted) if array.dtype.kind in "biuf" else None
        lossless = cast is not None and (
            np.array_equal(cast, array) if python_numbers else np.can_cast(array.dtype, wanted, "safe")
        )
        if cast is None or not lossless:
            raise InputError(
                f"The input {_described(expected)} was given as {array.dtype}; convert it first."
            )
        array = cast
    shape = expected.shape
    if shape is not None and (
        array.ndim != len(shape)
        or any(n.static and int(n) != m for n, m in zip(shape, array.shape, strict=True))
    ):
        raise InputError(f"The input {_described(expected)} was given with shape {list(array.shape)}.")
    return np.asarray(array, order="C")


def _array(x: Any) -> np.ndarray:
    if type(x).__module__.partition(".")[0] != "torch":
        return np.asarray(x)
    tensor = x.detach().cpu().contiguous()
    if str(tensor.dtype) != "torch.bfloat16":
        return np.asarray(tensor.numpy())
    import torch

    bits: np.ndarray = tensor.view(torch.uint16).numpy()
    return bits.view(ir.DataType.BFLOAT16.numpy())
