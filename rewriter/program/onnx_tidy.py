"""Generic clean-up of ONNX models by the passes that `onnx_ir` and `onnxscript` maintain."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod

import onnx_ir as ir

from rewriter.algebra.frontends.onnx_opaque import RANDOM
from rewriter.errors import RewriterError
from rewriter.program.graph import Graph
from rewriter.program.onnx_version import settle_initializers

__all__ = ["FOLDED", "tidied"]

FOLDED = 8192
"""Elements that a constant may have to be read by, or to be the result of, folding."""


def tidied(model: ir.Model, graph: Graph) -> tuple[ir.Model, Mapping[str, int]]:
    """Return a copy without nodes that a constant, or another node, stands for; it shares the weights.

    Constants are folded up to `FOLDED` elements, where the size of the result is known beforehand. Names and
    types of inputs and outputs, metadata, and what functions and weights are called stay.

    Parameters
    ----------
    model
        The model; it is not changed.
    graph
        The read view of it: what sizes are inferred to be.

    Returns
    -------
    tuple
        The copy, and how many nodes each step has removed, by what it removes.

    Raises
    ------
    RewriterError
        When a pass cannot cope with the model.
    """
    made = model.clone()
    removed: dict[str, int] = {}
    before = _count(made)
    with _quiet(), _without_defaults(made):
        for what, step in _steps(made, graph):
            try:
                step(made)
            except Exception as error:  # passes raise whatever operators of the model make them raise
                raise RewriterError(f"{what} could not be removed: {type(error).__name__}") from error
            after = _count(made)
            if after != before:
                removed[what] = removed.get(what, 0) + before - after
            before = after
    settle_initializers(made)
    return made, removed


def _steps(model: ir.Model, graph: Graph) -> Iterator[tuple[str, Callable[[ir.Model], object]]]:
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants_ir
    from onnxscript.rewriter import RewritePass
    from onnxscript.rewriter.rules import common as rules

    views = (
        rules.reshape_reshape_rule,
        rules.transpose_transpose_rule,
        rules.unsqueeze_unsqueeze_rule,
        rules.no_op_transpose_rule,
        rules.no_op_expand_rule,
    )

    def fold(made: ir.Model) -> object:
        return fold_constants_ir(
            made,
            input_size_limit=FOLDED,
            output_size_limit=FOLDED,
            should_fold=lambda node: None if _may_fold(node, made.graph, graph) else False,
        )

    yield "constants", fold
    yield "views of views", RewritePass(views)
    yield "identities", common.IdentityEliminationPass()
    if not any(map(_is_random, _nodes(model))):  # two draws are not one
        yield "repetitions", common.CommonSubexpressionEliminationPass()
    yield "unread nodes", common.RemoveUnusedNodesPass()


def _may_fold(node: ir.Node, main: ir.Graph, graph: Graph) -> bool:
    """Whether the results of a node of the main graph are known to be small, and always the same."""
    values = [graph.values.get(v.name or "") for v in node.outputs]
    shapes = [None if v is None else v.shape for v in values]
    fixed = node.graph is main and not _is_random(node)
    return fixed and all(
        shape is not None and all(n.static for n in shape) and prod(map(int, shape)) <= FOLDED
        for shape in shapes
    )


def _is_random(node: ir.Node) -> bool:
    return node.domain in ("", "ai.onnx") and node.op_type in RANDOM


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Yield the nodes of the main graph, of inner graphs and of functions."""
    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for body in bodies:
        yield from ir.traversal.RecursiveGraphIterator(body)


def _count(model: ir.Model) -> int:
    """Return how many nodes compute: constants are none."""
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    return sum(node.op_type != "Constant" or node.domain != "" for node in nodes)


@contextmanager
def _without_defaults(model: ir.Model) -> Iterator[None]:
    """Let inputs that have a default be inputs alone: passes take what a value holds for a constant."""
    graph = model.graph
    defaults = [(v, v.const_value) for v in graph.inputs if v.name in graph.initializers]
    for value, _ in defaults:
        del graph.initializers[value.name or ""]
        value.const_value = None
    try:
        yield
    finally:
        for value, tensor in defaults:
            value.const_value = tensor
            graph.initializers.add(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the passes log about operators that they leave alone."""
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
