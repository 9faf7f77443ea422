"""torch.export graphs in primitive form.

Every value becomes a `Prim`. Shapes are those that torch has computed; symbolic integers are followed as
sizes, so that the arguments of views are polynomials.
"""

from __future__ import annotations

from collections.abc import Sequence

from rewriter.algebra.frontends.aten_attention import ATTENTION
from rewriter.algebra.frontends.aten_closed import deterministic, lazy
from rewriter.algebra.frontends.aten_contractions import CONTRACTIONS
from rewriter.algebra.frontends.aten_fused import FUSED
from rewriter.algebra.frontends.aten_indexing import INDEXING
from rewriter.algebra.frontends.aten_moments import MOMENTS
from rewriter.algebra.frontends.aten_pointwise import POINTWISE
from rewriter.algebra.frontends.aten_pools import POOLS
from rewriter.algebra.frontends.aten_scope import Call, Handler, Result, Scope
from rewriter.algebra.frontends.aten_symbols import is_number, symbol
from rewriter.algebra.frontends.aten_views import VIEWS
from rewriter.algebra.frontends.aten_windows import WINDOWS
from rewriter.algebra.prims import Constant, Map, Prim, leaf
from rewriter.algebra.sizes import ONE, Size
from rewriter.program.graph import Graph, Node

__all__ = ["translate"]

_HANDLERS: dict[str, Handler] = {
    **VIEWS,
    **WINDOWS,
    **POINTWISE,
    **CONTRACTIONS,
    **MOMENTS,
    **POOLS,
    **INDEXING,
    **ATTENTION,
    **FUSED,
}


def translate(graph: Graph) -> dict[str, Prim]:
    """Return every value of a torch.export graph in primitive form.

    Parameters
    ----------
    graph
        Functional; its nodes' ``native`` are `torch.fx.Node`. Values without a shape (tuples) are skipped.

    Returns
    -------
    dict
        Value name -> form whose ``value`` is that name. Operators that are not understood are leaves, or
        constants that torch computes when asked if they depend on constants alone.
    """
    scope = Scope(graph)
    for name in (*graph.inputs, *graph.held):
        if name not in graph.constants:
            _place_leaf(scope, name, "input")
    for name, load in graph.constants.items():
        value = graph.values.get(name)
        if value is not None and value.shape is not None:
            scope.prims[name] = Prim(Constant(load), (), value.shape, value.dtype, name)
    for node in graph.nodes:
        _place_node(scope, node)
    for name in graph.values:
        if name not in scope.prims:
            _place_leaf(scope, name, "outside the graph")
    return scope.prims


def _place_leaf(scope: Scope, name: str, why: str) -> None:
    value = scope.graph.values[name]
    if value.shape is not None:
        scope.prims[name] = leaf(why, value.shape, value.dtype, name)


def _place_node(scope: Scope, node: Node) -> None:
    call = Call(scope, node)
    if is_number(node.native):
        scope.prims[call.name] = symbol(call).named(call.name)
        return
    if _is_closed(scope, node):
        scope.closed.update(node.outputs)
        scope.closed.add(node.native.name)
    if node.op == "getitem":
        found: Result = _part(call)
    else:
        found = _translate(call)
    if isinstance(found, Sequence):
        scope.parts[node.native.name] = found
        if len(node.outputs) == 1 and call.stated is None:
            return
        for name, part in zip(node.outputs, found, strict=False):
            _place(call, name, part)
        return
    for name in node.outputs:
        _place(call, name, found)


def _translate(call: Call) -> Result:
    name = call.op.removeprefix("aten::")
    handler = _HANDLERS.get(name) or _HANDLERS.get(name.partition(".")[0])
    if handler is None:
        return None
    try:
        return handler(call)
    except (ValueError, LookupError, TypeError, ArithmeticError):
        return (
            None  # arguments that are not what the translation expects: as safe a leaf as an unknown operator
        )


def _part(call: Call) -> Prim | None:
    source, at = call.args
    parts = call.scope.parts.get(source.name)
    return parts[at] if parts is not None and isinstance(at, int) and -len(parts) <= at < len(parts) else None


def _place(call: Call, name: str, found: Prim | None) -> None:
    """Give a value its form: what was found, with the shape that torch states, or a leaf."""
    scope, value = call.scope, call.scope.graph.values.get(name)
    if value is None or value.shape is None:
        return
    shape = value.shape
    if found is None or not _agree(found.shape, shape):
        if name in scope.closed and all(n.static for n in shape):
            scope.prims[name] = Prim(
                Constant(lazy(scope.graph, call.node.native)), (), shape, value.dtype, name
            )
        else:
            scope.prims[name] = leaf(_reason(call), shape, value.dtype, name)
        return
    dtype = value.dtype or found.dtype
    if found.value is not None:
        same = dtype == found.dtype
        found = Prim(Map("identity" if same else "cast"), (found,), shape, dtype)
    elif found.shape != shape or found.dtype != dtype:
        found = Prim(found.form, found.inputs, shape, dtype)
    scope.prims[name] = scope.progressions.simplified(found).named(name)


def _reason(call: Call) -> str:
    """Return the operator's name; for one of several results, that of the operator which gave them."""
    producer = call.scope.graph.producer(call.args[0].name) if call.op == "getitem" else call.node
    return call.op if producer is None else producer.op.removeprefix("aten::")


def _agree(found: tuple[Size, ...], stated: tuple[Size, ...]) -> bool:
    if found == stated:
        return True
    if len(found) != len(stated):
        return False
    # torch may know that two dimensions are equal, but a single entry is never a dimension
    return all(
        a == b or not ((a.static and b.static) or ONE in (a, b)) for a, b in zip(found, stated, strict=True)
    )


def _is_closed(scope: Scope, node: Node) -> bool:
    native = node.native
    return (
        native.op == "call_function"
        and all(source.name in scope.closed for source in native.all_input_nodes)
        and deterministic(native)
    )
