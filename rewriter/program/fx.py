"""Programs traced from PyTorch: a `torch.export.ExportedProgram` with one read view and one edit verb."""

from __future__ import annotations

import copy
import json
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, InputSpec, TensorArgument
from torch.fx import GraphModule
from torch.fx import Node as FxNode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from rewriter.algebra.sizes import Size
from rewriter.errors import InputError
from rewriter.lower.torch_emitter import TorchEmitter
from rewriter.program.graph import Graph, Node, Value
from rewriter.program.program import Arrays, Build, Program, Replacement

if TYPE_CHECKING:
    from rewriter.algebra.prims import Prim

SITES = "rewriter.sites"
"""Metadata that lists what was rewritten, as JSON: site -> form, fidelity and what else is known."""

__all__ = ["FxProgram", "to_numpy", "to_torch", "trace"]


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
    _refuse_aliases(args, kwargs or {})
    try:
        with torch.no_grad():
            exported = torch.export.export(
                module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False
            ).run_decompositions({})
    except Exception as error:  # noqa: BLE001  torch.export raises whatever the module and its own passes raise
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"{type(module).__name__} cannot be exported by torch.export: {first.strip()}") from error
    return FxProgram(_without_metadata_checks(exported), type(module).__name__)


def _without_metadata_checks(exported: ExportedProgram) -> ExportedProgram:
    """Drop assertions about dtypes that a static graph has already settled: they would hold scores alive."""
    for node in list(exported.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            exported.graph.erase_node(node)
    exported.graph_module.recompile()
    return exported


def _refuse_aliases(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    seen: dict[int, int] = {}
    for at, leaf in enumerate(tree_leaves((args, kwargs))):
        if isinstance(leaf, torch.Tensor) and leaf.numel():
            first = seen.setdefault(leaf.untyped_storage().data_ptr(), at)
            if first != at:
                raise InputError(
                    f"example inputs {first} and {at} share memory: torch.export would merge them into one input; "
                    "pass a clone of one of them"
                )


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor as numpy; bfloat16 as `ml_dtypes.bfloat16`."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def to_torch(array: Any) -> torch.Tensor:
    """Return an array (or a tensor, as it is) as a tensor."""
    if isinstance(array, torch.Tensor):
        return array
    array = np.asarray(array)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


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

    @property
    def metadata(self) -> Mapping[str, str]:
        """Notes that are saved with the program."""
        return self._metadata

    @cached_property
    def graph(self) -> Graph:
        """The read view."""
        return _view(self.exported)

    def prims(self) -> Mapping[str, Prim]:
        """Return every tensor in primitive form."""
        return self._prims

    @cached_property
    def _prims(self) -> Mapping[str, Prim]:
        from rewriter.algebra.frontends.aten import translate

        return translate(self.graph)

    # running

    def run(self, *inputs: Any, **named: Any) -> tuple[Any, ...]:
        """Run without gradients; return a flat tuple of tensors."""
        given = self._bind(inputs, named)
        bound = _bound_tensors(self.exported)
        users = iter(given)
        flat = [next(users) if t is None else t for t in bound]
        with torch.no_grad():
            outputs = self.exported.graph_module(*flat)
        signature = self.exported.graph_signature
        hidden = len(signature.buffers_to_mutate) + len(signature.user_inputs_to_mutate)
        return tuple(tree_leaves(outputs))[hidden:]

    def _bind(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> list[torch.Tensor]:
        names = self.graph.inputs
        if len(inputs) > len(names):
            raise InputError(f"{self.source} takes {len(names)} inputs ({', '.join(names)}), {len(inputs)} are given")
        values = dict(zip(names, inputs, strict=False))
        for name, value in named.items():
            if name not in names or name in values:
                raise InputError(f"{self.source} has no free input {name!r}; its inputs are {', '.join(names)}")
            values[name] = value
        missing = [n for n in names if n not in values]
        if missing:
            raise InputError(f"{self.source} also needs {', '.join(missing)}")
        return [self._checked(n, values[n]) for n in names]

    def _checked(self, name: str, given: Any) -> Any:
        if not isinstance(given, torch.Tensor | np.ndarray | np.generic):
            return given
        tensor, value = to_torch(given), self.graph.values[name]
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

    def extract(self, inputs: Sequence[str], outputs: Sequence[str]) -> Callable[[Arrays], list[np.ndarray]]:
        """Return the part of the graph from ``inputs`` to ``outputs`` as a function of arrays."""
        region = [n.native for n in self.graph.region(outputs, inputs)]
        weights = _tensors_by_name(self.exported)
        natives = {n.name: n for n in self.exported.graph.nodes}

        def part(arrays: Arrays) -> list[np.ndarray]:
            env: dict[str, Any] = {n: to_torch(arrays[n]) for n in inputs}
            sizes = _symbols(natives, {n: t.shape for n, t in env.items()})

            def value(node: FxNode) -> Any:
                if node.name not in env:
                    if node.name in weights:
                        env[node.name] = weights[node.name]
                    elif isinstance(node.meta.get("val"), torch.SymInt):
                        env[node.name] = _number(node.meta["val"], sizes)
                    else:
                        raise InputError(f"{', '.join(outputs)} also depends on {node.name}, which is not given")
                return env[node.name]

            with torch.no_grad():
                for node in region:
                    if node.name in env or isinstance(node.meta.get("val"), torch.SymInt):
                        continue
                    args = torch.fx.map_arg(node.args, value)
                    kwargs = torch.fx.map_arg(node.kwargs, value)
                    env[node.name] = node.target(*args, **kwargs)
            return [to_numpy(value(natives[name])) for name in outputs]

        return part

    def emit(
        self, inputs: Sequence[str], build: Build, sample: Arrays, target: str = "torch"
    ) -> Callable[[Arrays], list[np.ndarray]]:
        """Return a new computation as a function of arrays."""
        _check_target(target)
        shapes = [self.graph.values[name].shape or () for name in inputs]

        def part(arrays: Arrays) -> list[np.ndarray]:
            tensors = [to_torch(arrays[n]) for n in inputs]
            with torch.no_grad():
                return [to_numpy(build(TorchEmitter(list(zip(tensors, shapes, strict=True))), tensors))]

        return part

    # editing

    def replace(self, replacements: Sequence[Replacement], target: str = "torch") -> FxProgram:
        """Return a program with the edits made; weights are shared."""
        _check_target(target)
        edit = _Edit(self)
        done: dict[str, dict[str, str]] = json.loads(self._metadata.get(SITES, "{}"))
        for replacement in replacements:
            edit.apply(replacement)
            done[replacement.name] = dict(sorted(replacement.metadata.items()))
        notes = {SITES: json.dumps(done, sort_keys=True)}
        return FxProgram(edit.finish(), self.source, {**self._metadata, **notes})

    def module(self) -> torch.nn.Module:
        """Return the program as a module: trains, compiles, exports again."""
        return self.exported.module()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a ``.pt2`` archive atomically."""
        from rewriter.program.pt2 import write_archive

        write_archive(self.exported, path, self._metadata)


def _check_target(target: str) -> None:
    if target != "torch":
        raise InputError(f"target {target!r} is not one of an FX program; expected 'torch'")


# the read view


def _view(exported: ExportedProgram) -> Graph:
    tensors = _tensors_by_name(exported)
    nodes: list[Node] = []
    values: dict[str, Value] = {}
    outputs: tuple[str, ...] = ()
    users = [s.arg.name for s in exported.graph_signature.input_specs if s.kind == InputKind.USER_INPUT]
    for node in exported.graph.nodes:
        if node.op == "output":
            outputs = tuple(n.name for n in tree_leaves(node.args) if isinstance(n, FxNode))
            continue
        values[node.name] = _value(node)
        if node.op == "call_function":
            inputs = tuple(n.name for n in tree_leaves((node.args, node.kwargs)) if isinstance(n, FxNode))
            nodes.append(Node(node.name, _operator(node.target), inputs, (node.name,), node))
    hidden = len(exported.graph_signature.buffers_to_mutate) + len(exported.graph_signature.user_inputs_to_mutate)
    constants = {name: _loader(t) for name, t in tensors.items()}
    return Graph(tuple(nodes), values, tuple(n for n in users if n in values), outputs[hidden:], constants)


def _loader(tensor: torch.Tensor) -> Callable[[], np.ndarray]:
    return lambda: to_numpy(tensor)


def _operator(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return str(target).replace(".", "::", 1)
    if target is operator.getitem:
        return "getitem"
    return f"{getattr(target, '__module__', '').lstrip('_')}::{getattr(target, '__name__', target)}"


def _value(node: FxNode) -> Value:
    known = node.meta.get("val")
    if isinstance(known, torch.Tensor):
        shape = tuple(_size(n) for n in known.shape)
        return Value(node.name, shape, str(known.dtype).removeprefix("torch."))
    if isinstance(known, torch.SymInt | int):
        return Value(node.name, (), "int64")
    return Value(node.name, None, None)


def _size(n: Any) -> Size:
    return Size.of(n) if isinstance(n, int) else Size.parse(str(n.node.expr))


def _bound_tensors(exported: ExportedProgram) -> list[torch.Tensor | None]:
    """Return a tensor per placeholder: weights and constants; None for user inputs."""
    found: list[torch.Tensor | None] = []
    for spec in exported.graph_signature.input_specs:
        if spec.kind == InputKind.USER_INPUT:
            if not isinstance(spec.arg, ConstantArgument) or spec.arg.name:
                found.append(None)
        elif spec.target in exported.state_dict:
            found.append(exported.state_dict[spec.target])
        else:
            found.append(exported.constants[spec.target or ""])
    return found


def _tensors_by_name(exported: ExportedProgram) -> dict[str, torch.Tensor]:
    names = [n.name for n in exported.graph.nodes if n.op == "placeholder"]
    return {n: t for n, t in zip(names, _bound_tensors(exported), strict=True) if t is not None}


# dynamic sizes of a part


def _symbols(natives: Mapping[str, FxNode], shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    bound: dict[str, int] = {}
    for name, shape in shapes.items():
        known = natives[name].meta.get("val") if name in natives else None
        if isinstance(known, torch.Tensor):
            for n, number in zip(known.shape, shape, strict=True):
                size = _size(n)
                if len(size.symbols) == 1 and size == Size.symbol(next(iter(size.symbols))):
                    bound.setdefault(str(size), int(number))
    return bound


def _number(value: torch.SymInt, sizes: Mapping[str, int]) -> int:
    expression = value.node.expr
    unknown = [str(s) for s in expression.free_symbols if str(s) not in sizes]
    if unknown:
        raise InputError(f"the size {expression} is not determined by the operands")
    return int(expression.subs({s: sizes[str(s)] for s in expression.free_symbols}))


# the edit verb


class _Edit:
    """Replaces values in a copy of a graph."""

    def __init__(self, program: FxProgram) -> None:
        self._program = program
        old = program.exported
        self._graph = copy.deepcopy(old.graph)
        self._signature = copy.deepcopy(old.graph_signature)
        self._constants = dict(old.constants)
        self._nodes = {n.name: n for n in self._graph.nodes}

    def apply(self, replacement: Replacement) -> None:
        """Compute ``replacement.output`` in the new way."""
        shapes = [self._program.graph.values[name].shape or () for name in replacement.inputs]
        anchor = self._nodes[replacement.output]
        operands = [self._nodes[name] for name in replacement.inputs]
        traced = _traced(replacement.build, [n.meta["val"] for n in operands], shapes)
        env: dict[FxNode, FxNode] = dict(
            zip((n for n in traced.graph.nodes if n.op == "placeholder"), operands, strict=True)
        )
        result: FxNode | None = None
        with self._graph.inserting_before(anchor):
            for node in traced.graph.nodes:
                if node.op == "output":
                    (last,) = tree_leaves(node.args)
                    result = env[last]
                elif node.op == "get_attr":
                    env[node] = self._lift(getattr(traced, node.target), replacement.name)
                elif node.op == "call_function":
                    copied = self._graph.node_copy(node, lambda n: env[n])
                    copied.meta = {k: node.meta[k] for k in ("val",) if k in node.meta}
                    copied.meta["custom"] = dict(replacement.metadata)
                    env[node] = copied
        assert result is not None
        if result in operands:
            with self._graph.inserting_before(anchor):
                kept = result
                result = self._graph.call_function(torch.ops.aten.alias.default, (kept,))
                result.meta["val"] = kept.meta["val"]
        name = anchor.name
        anchor.replace_all_uses_with(result)
        self._graph.erase_node(anchor)
        result.name = name
        self._nodes[name] = result

    def _lift(self, tensor: torch.Tensor, prefix: str) -> FxNode:
        """Add a constant tensor as an input that the program binds."""
        name = f"c_{prefix}_{len(self._constants)}"
        specs = self._signature.input_specs
        at = next((k for k, s in enumerate(specs) if s.kind == InputKind.USER_INPUT), len(specs))
        holders = [n for n in self._graph.nodes if n.op == "placeholder"]
        place = holders[at] if at < len(holders) else next(n for n in self._graph.nodes if n.op != "placeholder")
        with self._graph.inserting_before(place):
            node = self._graph.placeholder(name)
        mode = next(n.meta["val"].fake_mode for n in self._graph.nodes if hasattr(n.meta.get("val"), "fake_mode"))
        node.meta["val"] = mode.from_tensor(tensor)
        specs.insert(at, InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(node.name), node.name, None))
        self._constants[node.name] = tensor
        return node

    def finish(self) -> ExportedProgram:
        """Return the edited program, what nothing reads any more removed."""
        old = self._program.exported
        self._graph.eliminate_dead_code()
        self._graph.lint()
        root = GraphModule(old.graph_module, self._graph)
        return ExportedProgram(
            root=root,
            graph=self._graph,
            graph_signature=self._signature,
            state_dict=old.state_dict,
            range_constraints=copy.deepcopy(old.range_constraints),
            module_call_graph=copy.deepcopy(old.module_call_graph),
            example_inputs=old.example_inputs,
            constants=self._constants,
            verifiers=list(old.verifiers),
        )


def _traced(build: Build, fakes: Sequence[torch.Tensor], shapes: Sequence[Sequence[Size]]) -> GraphModule:
    """Trace an emission into operators, on the program's own fake tensors."""

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = build(TorchEmitter(list(zip(tensors, shapes, strict=True))), tensors)
        return result

    mode = next(f.fake_mode for f in fakes if hasattr(f, "fake_mode"))  # type: ignore[attr-defined]
    with mode, torch.no_grad():
        traced: GraphModule = make_fx(function, pre_dispatch=True)(*fakes)
    for node in traced.graph.nodes:
        if node.target is torch.ops.aten.detach_.default:
            # what tracing puts around a constant is in place, which an exported program may not be
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()
    return traced
