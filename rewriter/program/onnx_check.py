"""What must hold of an ONNX message before anything else looks at it, checked in linear time.

The checks cover what later steps rely on and what is known to hang or to blow up the libraries they
call: unbounded expansion of functions, malformed einsum equations.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

import onnx

from rewriter.errors import InputError
from rewriter.program.onnx_schemas import PLAIN, check_call, check_declared, check_tensor

__all__ = ["OLDEST_OPSET", "check_model", "standard_opset"]

OLDEST_OPSET = 11
_MOST_NODES = 2_000_000  # after every call of a function is expanded
_DEEPEST_CALL = 64  # functions that call functions; what expands them refuses more than 100
_EINSUM_TERM = r"[A-Za-z ]*(\.\.\.)?[A-Za-z ]*"
_EINSUM = re.compile(rf"{_EINSUM_TERM}(,{_EINSUM_TERM}){{0,63}}(->{_EINSUM_TERM})?")

_FunctionId = tuple[str, str, str]


def standard_opset(imports: Iterable[onnx.OperatorSetIdProto]) -> int | None:
    """Return the version of the standard operators, or None when they are not imported."""
    return next((o.version for o in imports if o.domain in ("", "ai.onnx")), None)


def check_model(model: onnx.ModelProto, path: str) -> bool:
    """Check the structure of a message.

    Returns
    -------
    bool
        Whether the nodes of every graph are in topological order. If not, they may form a cycle.

    Raises
    ------
    InputError
        If a name is defined twice or never, an opset is too old or unknown, a node or a tensor is
        not what the standard says, functions call each other in a circle or expand to too many
        nodes, or the model uses what is not supported.
    """
    opset = standard_opset(model.opset_import)
    newest = onnx.defs.onnx_opset_version()
    if opset is None:
        raise InputError(
            f"{path} imports no standard ONNX operators; expected opset {OLDEST_OPSET} or later."
        )
    if not OLDEST_OPSET <= opset <= newest:
        hint = "convert it with onnx.version_converter" if opset < OLDEST_OPSET else "install a newer onnx"
        raise InputError(f"{path} uses opset {opset}; expected {OLDEST_OPSET} to {newest}: {hint}.")
    check_declared(model.graph.input, path)
    in_order = _check_graph(model.graph, [], path)
    _check_contents(model.graph, opset, path)
    for function in model.functions:
        in_order &= _check_function(function, newest, path)
    if model.functions:
        _check_expansion(model, path)
    return in_order


def _check_function(function: onnx.FunctionProto, newest: int, path: str) -> bool:
    name = f"function {function.name[:80]!r}"
    opset = standard_opset(function.opset_import)
    if opset is not None and not 1 <= opset <= newest:
        raise InputError(f"{path}: {name} uses opset {opset}; expected {newest} at most.")
    scope = set(function.input)
    in_order = _check_nodes(function.node, [scope], path, name)
    for result in function.output:
        if result not in scope:
            raise InputError(f"{path}: output {result!r} of {name} is computed by nothing.")
    _check_contents(function, opset, path)
    return in_order


def _check_graph(graph: onnx.GraphProto, outer: list[set[str]], path: str) -> bool:
    where = f"graph {graph.name[:80]!r}"
    if graph.sparse_initializer:
        raise InputError(
            f"{path}: {where} has sparse initializers, which are not supported; make them dense."
        )
    inputs, initializers = [v.name for v in graph.input], [t.name for t in graph.initializer]
    for kind, names in (("input", inputs), ("initializer", initializers)):
        if len(set(names)) != len(names) or "" in names:
            raise InputError(f"{path}: {where} has two {kind}s of one name, or one without a name.")
    scope = {*inputs, *initializers}
    in_order = _check_nodes(graph.node, [*outer, scope], path, where)
    for value in graph.output:
        if value.name not in scope:
            raise InputError(f"{path}: output {value.name!r} of {where} is computed by nothing.")
    return in_order


def _check_nodes(nodes: Sequence[onnx.NodeProto], scopes: list[set[str]], path: str, where: str) -> bool:
    """Check that names are defined once and before they are read; the innermost scope collects them."""
    scope = scopes[-1]
    scope.add("")  # an operand or a result that is left out
    later = cache(lambda: {name for node in nodes for name in node.output if name})
    in_order = True
    for node in nodes:
        read = () if scope.issuperset(node.input) else node.input
        early = [name for name in read if not any(name in s for s in scopes)]
        for name in early:
            if name not in later():
                raise InputError(
                    f"{path}: node {_named(node)} of {where} reads {name[:80]!r}, which is neither an input "
                    "nor computed by any node."
                )
        in_order &= not early
        if node.op_type == "Einsum":
            _check_einsum(node, path)
        for graph in _graphs_of(node):
            # in a list that is out of order an inner graph may read what comes later
            in_order &= _check_graph(graph, [*scopes, later()], path)
        for name in node.output:
            if name and name in scope:
                raise InputError(
                    f"{path}: {name[:80]!r} is computed twice in {where}, again by node {_named(node)}."
                )
            scope.add(name)
    scope.discard("")
    return in_order


def _check_contents(body: onnx.GraphProto | onnx.FunctionProto, opset: int | None, path: str) -> None:
    """Check every node and tensor, inner graphs included."""
    bodies: list[onnx.GraphProto | onnx.FunctionProto] = [body]
    while bodies:
        body = bodies.pop()
        for tensor in body.initializer if isinstance(body, onnx.GraphProto) else ():
            check_tensor(tensor, path)
        for node in body.node:
            check_call(node, opset, path)
            for attribute in node.attribute:
                if attribute.type in PLAIN:
                    continue
                bodies.extend(_subgraphs(attribute))
                if attribute.HasField("t"):
                    check_tensor(attribute.t, path)
                if any(map(_is_external, attribute.tensors)):
                    raise InputError(
                        f"{path}: node {_named(node)} has a list of external tensors, which is not supported."
                    )


def _is_external(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def _named(node: onnx.NodeProto) -> str:
    return repr((node.name or node.op_type)[:80])


def _graphs_of(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [graph for a in node.attribute if a.type not in PLAIN for graph in _subgraphs(a)]


def _subgraphs(attribute: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def _check_einsum(node: onnx.NodeProto, path: str) -> None:
    for attribute in node.attribute:
        equation = attribute.s.decode("utf-8", "replace")
        if attribute.name == "equation" and not attribute.ref_attr_name and not _EINSUM.fullmatch(equation):
            raise InputError(
                f"{path}: node {_named(node)} has the malformed einsum equation {equation[:80]!r}."
            )


def _check_expansion(model: onnx.ModelProto, path: str) -> None:
    """Bound the number of nodes when every call of a function is replaced by its body."""
    functions = _bodies(model, path)
    own: dict[_FunctionId, int] = {}
    calls: dict[_FunctionId, list[_FunctionId]] = {}
    callers: dict[_FunctionId, list[_FunctionId]] = {key: [] for key in functions}
    for key, body in functions.items():
        own[key], calls[key] = _count(body, functions)
        for callee in calls[key]:
            callers[callee].append(key)
    waiting = {key: len(called) for key, called in calls.items()}
    ready = deque(key for key, count in waiting.items() if not count)
    total: dict[_FunctionId, int] = {}
    depth: dict[_FunctionId, int] = {}
    while ready:
        key = ready.popleft()
        total[key] = own[key] + sum(total[callee] for callee in calls[key])
        depth[key] = 1 + max((depth[callee] for callee in calls[key]), default=0)
        for caller in callers[key]:
            waiting[caller] -= 1
            if not waiting[caller]:
                ready.append(caller)
    if len(total) < len(functions):
        name = next(key for key in functions if key not in total)[1]
        raise InputError(
            f"{path}: function {name!r} calls itself, directly or through others; ONNX functions may not."
        )
    deepest = max(depth, key=depth.__getitem__, default=None)
    if deepest is not None and depth[deepest] > _DEEPEST_CALL:
        raise InputError(
            f"{path}: function {deepest[1]!r} calls functions that call others, {depth[deepest]} deep;"
            f" at most {_DEEPEST_CALL} is read."
        )
    nodes, called = _count(model.graph.node, functions)
    nodes += sum(total[key] for key in called)
    if nodes > _MOST_NODES or any(n > _MOST_NODES for n in total.values()):
        raise InputError(f"{path} expands to more than {_MOST_NODES} nodes when its functions are inlined.")


def _bodies(model: onnx.ModelProto, path: str) -> dict[_FunctionId, Sequence[onnx.NodeProto]]:
    functions: dict[_FunctionId, Sequence[onnx.NodeProto]] = {}
    for function in model.functions:
        key = _function_id(function.domain, function.name, function.overload)
        if key in functions:
            raise InputError(
                f"{path}: function {function.name!r} of domain {function.domain!r} is defined twice."
            )
        functions[key] = function.node
    return functions


def _count(
    nodes: Iterable[onnx.NodeProto], functions: dict[_FunctionId, Sequence[onnx.NodeProto]]
) -> tuple[int, list[_FunctionId]]:
    """Return the number of nodes, inner graphs included, and the functions they call, with repeats."""
    count, calls, stack = 0, [], list(nodes)
    while stack:
        node = stack.pop()
        count += 1
        if (key := _function_id(node.domain, node.op_type, node.overload)) in functions:
            calls.append(key)
        for graph in _graphs_of(node):
            stack.extend(graph.node)
    return count, calls


def _function_id(domain: str, name: str, overload: str) -> _FunctionId:
    return "" if domain == "ai.onnx" else domain, name, overload
