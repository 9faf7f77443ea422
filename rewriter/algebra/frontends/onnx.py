"""ONNX graphs in primitive form.

Every value becomes a `Prim`. Sizes are computed along the way, from the operators themselves: exporters
spell dynamic shapes as chains of integer operators, which are followed symbolically
(`rewriter.algebra.frontends.onnx_shapes`); what the file states fills the gaps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from rewriter.algebra.evaluate import evaluate
from rewriter.algebra.frontends.onnx_attention import ATTENTION
from rewriter.algebra.frontends.onnx_opaque import (
    computes_constants,
    lazy_outputs,
    opaque_dtype,
    opaque_shape,
)
from rewriter.algebra.frontends.onnx_operators import OPERATORS
from rewriter.algebra.frontends.onnx_pools import POOLS
from rewriter.algebra.frontends.onnx_scope import SMALL, Call, Known, Scope, integer_tensor, simple
from rewriter.algebra.frontends.onnx_shapes import follow
from rewriter.algebra.frontends.onnx_views import VIEWS
from rewriter.algebra.prims import Constant, Expand, Iota, Permute, Prim, Reshape, constant, leaf
from rewriter.algebra.sizes import ONE, Size
from rewriter.program.graph import Graph, Node

__all__ = ["translate"]

_HANDLERS = {**VIEWS, **OPERATORS, **POOLS, **ATTENTION}

FOLDED = 64
"""Results of operators on known numbers are computed at once up to this many elements."""


def translate(graph: Graph, opset: int, functions: Mapping[str, Graph] = {}) -> dict[str, Prim]:
    """Return every value of an ONNX graph in primitive form.

    Parameters
    ----------
    graph
        Its nodes' ``native`` are of `rewriter.program.onnx_message`.
    opset
        Version of the standard operators that the model imports.
    functions
        Bodies of model-local functions by qualified name: their calls are looked into.

    Returns
    -------
    dict
        Value name -> form whose ``value`` is that name. Operators that are not understood, and uses of
        values of unknown rank, are leaves.
    """
    scope = Scope(graph, opset, functions)
    for name in (*graph.inputs, *graph.held):
        if name not in graph.constants:
            _place_leaf(scope, name, "input", scope.declared(name))
    for name in graph.constants:
        _place_constant(scope, name)
    for node in graph.nodes:
        _place_node(scope, node)
    for name in graph.values:
        if name not in scope.prims:
            _place_leaf(scope, name, "absent", scope.declared(name))
    return scope.prims


def _place_leaf(
    scope: Scope, name: str, why: str, shape: Sequence[Size] | None, dtype: str | None = None
) -> None:
    if shape is None:
        scope.unranked.add(name)
        why = f"{why}, of unknown rank"
    scope.prims[name] = leaf(why, shape or (), dtype or scope.dtype(name), name)


def _place_constant(scope: Scope, name: str) -> None:
    load, value = scope.graph.constants[name], scope.graph.values.get(name)
    shape = None if value is None else value.shape
    scope.closed.add(name)
    if shape is not None and (not all(n.static for n in shape) or math.prod(map(int, shape)) > SMALL):
        scope.prims[name] = Prim(Constant(load), (), shape, scope.dtype(name), name)
        return
    array = np.asarray(load())
    dtype = scope.dtype(name) or array.dtype.name
    if array.size > SMALL or array.dtype.kind in "OSU":
        scope.prims[name] = Prim(Constant(load), (), tuple(map(Size.of, array.shape)), dtype, name)
        return
    scope.arrays[name] = array
    scope.prims[name] = constant(array, dtype, name)


def _place_node(scope: Scope, node: Node) -> None:
    outputs = node.native.outputs
    if node.op in scope.functions and not node.native.proto.attribute and _place_call(scope, node, outputs):
        return
    call = Call(scope, node, outputs)
    closed = computes_constants(call) or call.op == "Constant"
    translated, known = _translate(call)
    if translated is None or (
        None in translated and any(x is None and name for x, name in zip(translated, outputs, strict=False))
    ):
        missing = _opaque(call, closed)
        translated = (
            missing
            if translated is None
            else [missing[at] if x is None else x for at, x in enumerate(translated)]
        )
    for at, name in enumerate(outputs):
        if not name:
            continue
        prim = translated[at] if at < len(translated) else None
        if prim is None or not all(map(simple, prim.shape)):
            _place_leaf(scope, name, call.op, opaque_shape(call, at), opaque_dtype(call, at))
            continue
        found = known[at] if at < len(known) else None
        array = _fold(call, prim, found) if closed or found is not None else None
        if array is not None and array.size <= SMALL and array.dtype.kind not in "OSU":
            scope.arrays[name] = array
            prim = prim if _says_more(prim) else constant(array, prim.dtype)
        elif found is not None:
            scope.integers[name] = found
        if closed or array is not None:
            scope.closed.add(name)
        scope.prims[name] = prim if prim.value == name else prim.named(name)
        scope.learn(name, prim.shape)


def _place_call(scope: Scope, node: Node, outputs: Sequence[str]) -> bool:
    """Place what a model-local function computes; False if its body cannot be followed."""
    body = scope.functions[node.op]
    names = [name or "" for name in node.inputs]
    if len(names) > len(body.inputs) or not scope.unranked.isdisjoint(names):
        return False
    inner = _entered(scope, body, names)
    for name in body.constants:
        _place_constant(inner, name)
    for step in body.nodes:
        _place_node(inner, step)
    results = [inner.prims.get(name) for name in body.outputs]
    if any(x is None or name in inner.unranked for x, name in zip(results, body.outputs, strict=True)):
        return False
    unnamed = _without_names([x for x in results if x is not None], {id(p) for p in scope.prims.values()})
    for name, prim in zip(outputs, unnamed, strict=False):
        if name:
            scope.prims[name] = prim.named(name)
            scope.learn(name, prim.shape)
    return True


def _entered(scope: Scope, body: Graph, names: Sequence[str]) -> Scope:
    """Return the scope of a function body in which its inputs are what it is called with."""
    inner = Scope(body, scope.opset, scope.functions)
    for formal, actual in zip(body.inputs, names, strict=False):
        if not actual:
            continue
        inner.prims[formal] = scope.prims[actual]
        if actual in scope.arrays:
            inner.arrays[formal] = scope.arrays[actual]
        if actual in scope.integers:
            inner.integers[formal] = scope.integers[actual]
        if actual in scope.closed:
            inner.closed.add(formal)
    return inner


def _without_names(results: Sequence[Prim], outer: set[int]) -> list[Prim]:
    """Return results of a function whose inner steps have lost their names, which mean nothing outside."""
    done: dict[int, Prim] = {}
    stack = list(results)
    while stack:
        prim = stack[-1]
        waiting = [] if id(prim) in outer else [x for x in prim.inputs if id(x) not in done]
        if id(prim) in done or not waiting:
            if id(prim) not in done:
                inputs = tuple(done[id(x)] for x in prim.inputs) if id(prim) not in outer else ()
                kept = id(prim) in outer
                done[id(prim)] = prim if kept else Prim(prim.form, inputs, prim.shape, prim.dtype)
            stack.pop()
        else:
            stack.extend(waiting)
    return [done[id(x)] for x in results]


def _translate(call: Call) -> tuple[Sequence[Prim | None] | None, Sequence[Known | None]]:
    """Return the outputs in primitive form (None for a leaf), and those that are sizes as sizes."""
    scope, names = call.scope, [name for name in call.node.inputs if name]
    if not scope.unranked.isdisjoint(names):
        return None, ()
    known: list[Known | None] = []
    if not scope.integers.keys().isdisjoint(names) or call.op in ("Shape", "Size"):
        found = follow(call)
        known = list(found) if isinstance(found, list) else [found]
        dtype = _integer_dtype(call)
        tensors = [None if k is None else integer_tensor(k, dtype) for k in known]
        if None not in tensors and len(tensors) == len(call.outputs):
            return tensors, known
    handler = _HANDLERS.get(call.op)
    if handler is None:
        return None, known
    try:
        result = handler(call)
    except (ValueError, IndexError, KeyError, ZeroDivisionError):
        return None, ()  # operands that do not fit the operator: as safe a leaf as an unknown operator
    return ([result] if isinstance(result, Prim) else result), known


def _integer_dtype(call: Call) -> str:
    if call.op in ("Equal", "Not", "And", "Or"):
        return "bool"
    stated = call.scope.dtype(call.outputs[0])
    if stated is not None:
        return stated
    return "int64" if call.op in ("Shape", "Size") else call[-1 if call.op == "Where" else 0].dtype or "int64"


def _opaque(call: Call, closed: bool) -> list[Prim | None]:
    """Return constants for the outputs of an operator on constants, None where it is a leaf."""
    if not closed:
        return [None] * len(call.outputs)
    loaders, prims = lazy_outputs(call), []
    for at, name in enumerate(call.outputs):
        shape = opaque_shape(call, at) if name else None
        static = shape is not None and all(n.static for n in shape)
        dtype = opaque_dtype(call, at) if name else None
        prims.append(Prim(Constant(loaders[at]), (), shape or (), dtype) if static else None)
    return prims


def _fold(call: Call, prim: Prim, known: Known | None) -> np.ndarray | None:
    """Return a small result of known numbers, computed in the precision of the model, or None."""
    if isinstance(prim.form, Constant) and (known is not None or call.op == "Constant"):
        return np.asarray(prim.form.load())
    names = [name for name in call.node.inputs if name]
    few = all(n.static for n in prim.shape) and math.prod(map(int, prim.shape)) <= FOLDED
    if not few or not names or call.op not in _HANDLERS or not call.scope.arrays.keys() >= set(names):
        return None
    dtypes = [prim.dtype, *(call.scope.prims[name].dtype for name in names)]
    precision = next((_PRECISION[dtype] for dtype in dtypes if dtype in _PRECISION), np.float64)
    try:
        return evaluate([prim], {}, dtype=precision)[0]
    except (ValueError, IndexError):
        return None  # operands out of range: the node fails in every runtime, if it is ever run


def _says_more(prim: Prim) -> bool:
    """Whether the structure of a known result says more than its numbers: a range, or what is repeated."""
    match prim.form:
        case Iota():
            return True
        case Expand():
            return prim.dtype in _PRECISION and any(n != ONE for n in prim.shape)
        case Reshape() | Permute():
            return prim.dtype in _PRECISION and _says_more(prim.inputs[0])
        case _:
            return False


_PRECISION = {"float16": np.float16, "bfloat16": np.float32, "float32": np.float32, "float64": np.float64}
