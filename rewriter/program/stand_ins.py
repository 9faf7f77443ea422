"""Graph inputs that a part reads for their sizes alone: any numbers of the right shape will do."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np

from rewriter.algebra.evaluate import EvaluationError, bind
from rewriter.algebra.prims import Leaf, Prim
from rewriter.program.graph import Graph
from rewriter.program.program import Arrays

__all__ = ["read_for_size", "stand_ins"]


def read_for_size(
    graph: Graph, prims: Mapping[str, Prim], inputs: Collection[str], outputs: Iterable[str]
) -> tuple[str, ...]:
    """Return the graph inputs that the part from ``inputs`` to ``outputs`` reads besides, if none matters.

    Their shapes follow from ``inputs``, and no output depends on their numbers. Else there are none.
    """
    wanted = tuple(outputs)
    region = graph.region(wanted, inputs)
    read = {value for node in region for value in node.inputs if value is not None}
    beside = [v for v in graph.inputs if v in read and v not in inputs and v not in graph.constants]
    bound = _symbols(prims, inputs)
    if not beside or not _symbols(prims, beside) <= bound:
        return ()
    depending = {prims[name] for name in beside}
    for node in region:
        operands = {prims[v] for v in node.inputs if v is not None}
        if operands & depending:
            made = [prims[v] for v in node.outputs if v not in inputs]
            depending.update(x for x in made if _depends(x, depending, operands - depending))
    return () if any(prims[v] in depending for v in wanted) else tuple(beside)


def _symbols(prims: Mapping[str, Prim], names: Iterable[str]) -> set[str]:
    return {s for name in names if name in prims for size in prims[name].shape for s in size.symbols}


def stand_ins(names: Iterable[str], prims: Mapping[str, Prim], arrays: Arrays) -> dict[str, np.ndarray]:
    """Return zeros for graph inputs, of the shapes that follow from ``arrays``.

    Raises
    ------
    ValueError
        If sizes contradict each other.
    """
    try:
        sizes = bind([prims[name] for name in arrays if name in prims], arrays)
    except EvaluationError as error:
        raise ValueError(str(error)) from error
    return {
        name: np.zeros([int(n.substitute(sizes)) for n in prims[name].shape], prims[name].dtype or "float32")
        for name in names
    }


def _depends(prim: Prim, on: Collection[Prim], stop: Collection[Prim]) -> bool:
    """Whether ``prim`` may be computed from some of ``on``: what is behind ``stop`` does not count."""
    stack, seen = [prim], {prim}
    while stack:
        at = stack.pop()
        if at in stop:
            continue
        if at in on or isinstance(at.form, Leaf):
            return True
        fresh = [x for x in at.inputs if x not in seen]
        seen.update(fresh)
        stack.extend(fresh)
    return False
