"""The edit verb of exported programs: values computed in a new way, in a copy of the graph."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Graph as FxGraph
from torch.fx import GraphModule
from torch.fx import Node as FxNode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from rewriter.algebra.sizes import Size
from rewriter.lower.errors import EmitError
from rewriter.lower.torch_emitter import TorchEmitter
from rewriter.program.graph import Graph
from rewriter.program.program import Build, Replacement

__all__ = ["PROVENANCE", "Editor", "copied", "edited"]

PROVENANCE = ("nn_module_stack", "stack_trace")
"""Metadata of a replaced node that also holds for what takes its place."""

_LONG = [4099, 4111, 4127, 4129]
"""Sample sizes of dynamic dimensions: longer than blocks, multiples of nothing."""

_CONSTANT_WRAPPERS = (
    torch.ops.aten.lift_fresh_copy.default,
    torch.ops.aten.lift_fresh.default,
    torch.ops.aten.detach_.default,
    torch.ops.aten.detach.default,
)
"""What tracing puts around a constant tensor."""


def edited(
    exported: ExportedProgram,
    graph: Graph,
    replacements: Sequence[Replacement],
    emitter: type[TorchEmitter] = TorchEmitter,
) -> ExportedProgram:
    """Return a program with the edits made and what nothing reads any more removed; weights are shared.

    Raises
    ------
    EmitError
        If a new value does not have the rank, dtype and static sizes of the one it replaces.
    """
    edit = Editor(exported, graph, emitter)
    for replacement in replacements:
        edit.apply(replacement)
    return edit.finish()


def copied(graph: FxGraph) -> FxGraph:
    """Return a copy with the same names, those that FX would change (``input``) included."""
    new = copy.deepcopy(graph)
    for node, original in zip(new.nodes, graph.nodes, strict=True):
        node.name = original.name
    return new


class Editor:
    """A copy of a program while it is edited."""

    def __init__(self, exported: ExportedProgram, graph: Graph, emitter: type[TorchEmitter]) -> None:
        self._old = exported
        self._emitter = emitter
        self._values = graph.values
        self._graph = copied(exported.graph)
        self._signature = copy.deepcopy(exported.graph_signature)
        self._constants = dict(exported.constants)
        self._nodes = {n.name: n for n in self._graph.nodes}
        fakes = (n.meta.get("val") for n in self._graph.nodes)
        self._mode = next(f.fake_mode for f in fakes if hasattr(f, "fake_mode"))
        self._changed: list[FxNode] = []
        _lengthen(self._graph, exported, self._mode)

    def apply(self, replacement: Replacement) -> None:
        """Compute ``replacement.output`` in the new way."""
        shapes = [self._values[name].shape or () for name in replacement.inputs]
        anchor = self._nodes[replacement.output]
        operands = [self._nodes[name] for name in replacement.inputs]
        traced = self._traced(replacement.build, [n.meta["val"] for n in operands], shapes)
        meta = {key: anchor.meta[key] for key in PROVENANCE if key in anchor.meta}
        meta["custom"] = {
            **anchor.meta.get("custom", {}),
            "rewriter.site": replacement.name,
            **replacement.metadata,
        }
        result = self._inlined(traced, operands, anchor, replacement.name, meta)
        _check_same(anchor.meta["val"], result.meta["val"], replacement)
        anchor.replace_all_uses_with(result)
        self._graph.erase_node(anchor)
        result.name = replacement.output
        self._nodes[replacement.output] = result
        self._changed.append(result)

    def _traced(
        self, build: Build, fakes: Sequence[torch.Tensor], shapes: Sequence[Sequence[Size]]
    ) -> GraphModule:
        """Trace an emission into operators, on the program's own fake tensors."""

        def function(*tensors: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = build(self._emitter(list(zip(tensors, shapes, strict=True))), tensors)
            return result

        # sizes of the trace are samples: what holds for them (a layout, a number of blocks) must not
        # become a condition on the inputs of the program
        environment = self._mode.shape_env
        with self._mode, environment.suppress_guards() if environment else nullcontext(), torch.no_grad():
            return _without_wrappers(make_fx(function, pre_dispatch=True)(*fakes))

    def _inlined(
        self,
        traced: GraphModule,
        operands: Sequence[FxNode],
        anchor: FxNode,
        name: str,
        meta: dict[str, Any],
    ) -> FxNode:
        """Copy traced operators to the place before ``anchor``; return the result as a node of its own."""
        env = dict(zip(traced.graph.find_nodes(op="placeholder"), operands, strict=True))
        with self._graph.inserting_before(anchor):
            for node in traced.graph.nodes:
                if node.op == "get_attr":
                    env[node] = self._lifted(getattr(traced, str(node.target)), name)
                elif node.op == "call_function":
                    env[node] = self._copied(node, env, f"{name}_{node.name}", meta)
            (output,) = tree_leaves(traced.graph.output_node().args)
            result: FxNode = env[output]
            if result in operands or result.op == "placeholder":
                kept = result
                result = self._graph.call_function(torch.ops.aten.alias.default, (kept,))
                result.meta = {"val": kept.meta["val"], **meta}
        return result

    def _copied(self, node: FxNode, env: dict[FxNode, FxNode], name: str, meta: dict[str, Any]) -> FxNode:
        args = torch.fx.map_arg(node.args, lambda n: env[n])
        kwargs = torch.fx.map_arg(node.kwargs, lambda n: env[n])
        copied = self._graph.create_node("call_function", node.target, args, kwargs, name)
        copied.meta = {"val": node.meta["val"], **meta}
        return copied

    def _lifted(self, tensor: torch.Tensor, prefix: str) -> FxNode:
        """Add a constant tensor as an input that the program binds."""
        specs = self._signature.input_specs
        at = next((k for k, s in enumerate(specs) if s.kind == InputKind.USER_INPUT), len(specs))
        holders = self._graph.find_nodes(op="placeholder")
        others = (n for n in self._graph.nodes if n.op != "placeholder")
        with self._graph.inserting_before(holders[at] if at < len(holders) else next(others)):
            node = self._graph.placeholder(f"c_{prefix}_{len(self._constants)}")
        node.meta["val"] = self._mode.from_tensor(tensor, static_shapes=True)
        specs.insert(at, InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(node.name), node.name, None))
        self._constants[node.name] = tensor
        return node

    def finish(self) -> ExportedProgram:
        """Return the edited program."""
        self._graph.eliminate_dead_code()
        _loosen_views(self._changed)
        self._graph.lint()
        exported = ExportedProgram(
            root=GraphModule(self._old.graph_module, self._graph),
            graph=self._graph,
            graph_signature=self._signature,
            state_dict=self._old.state_dict,
            range_constraints=dict(self._old.range_constraints),
            module_call_graph=list(self._old.module_call_graph),
            example_inputs=self._old.example_inputs,
            constants=self._constants,
            verifiers=list(self._old.verifiers),
        )
        exported._guards_code = list(self._old._guards_code)
        return exported


def _lengthen(graph: FxGraph, exported: ExportedProgram, mode: FakeTensorMode) -> None:
    """Make the sample sizes of dynamic dimensions large, where nothing that is known of them forbids it.

    Tracing decides by samples whether an axis has size 1. A short sample makes one block of a sequence,
    and everything that reads the graph again (the export to ONNX) would take that for a rule.
    """
    environment = mode.shape_env
    symbols = sorted(exported.range_constraints, key=str)
    if environment is None or not symbols:
        return
    sizes: dict[Any, int] = {}
    for symbol, long in zip(symbols, _LONG * len(symbols), strict=False):
        upper = exported.range_constraints[symbol].upper
        sizes[symbol] = min(int(upper), long) if upper.is_Integer else long
    if exported._guards_code or not all(g.expr.subs(sizes) == True for g in environment.guards):  # noqa: E712
        return

    def longer(value: Any) -> Any:
        if isinstance(value, torch.SymInt) and value.node.expr.free_symbols <= sizes.keys():
            return environment.create_symintnode(value.node.expr, hint=int(value.node.expr.subs(sizes)))
        if isinstance(value, torch.Tensor) and not all(isinstance(n, int) for n in value.shape):
            with mode:
                return torch.empty_strided(
                    [longer(n) for n in value.shape],
                    [longer(n) for n in value.stride()],
                    dtype=value.dtype,
                    device=value.device,
                    requires_grad=value.requires_grad,
                )
        return type(value)(longer(x) for x in value) if type(value) in (list, tuple) else value

    for node in graph.nodes:
        if "val" in node.meta:
            node.meta["val"] = longer(node.meta["val"])


def _without_wrappers(traced: GraphModule) -> GraphModule:
    for node in list(traced.graph.nodes):
        if node.target in _CONSTANT_WRAPPERS and node.args[0].op == "get_attr":
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()
    return traced


def _check_same(old: Any, new: Any, replacement: Replacement) -> None:
    pairs = zip(old.shape, new.shape, strict=False)
    differ = any(isinstance(n, int) and isinstance(m, int) and n != m for n, m in pairs)
    if old.dtype != new.dtype or len(old.shape) != len(new.shape) or differ:
        raise EmitError(
            f"the new value of {replacement.output} is {new.dtype} {list(new.shape)}, "
            f"expected {old.dtype} {list(old.shape)}"
        )


def loosen_view(node: FxNode) -> None:
    """Let a view of a changed value copy where it must: a new value may be laid out in another order."""
    if node.target is torch.ops.aten.view.default:
        node.target = torch.ops.aten.reshape.default


def _loosen_views(changed: Sequence[FxNode]) -> None:
    seen: set[FxNode] = set()
    stack = list(changed)
    while stack:
        for reader in stack.pop().users:
            if reader not in seen:
                seen.add(reader)
                stack.append(reader)
                loosen_view(reader)
