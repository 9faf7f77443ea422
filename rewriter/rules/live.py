"""What is still computed of a graph when some of its values are computed in another way."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rewriter.program.graph import Graph

__all__ = ["still_read"]


def still_read(graph: Graph, gone: Collection[str], instead: Mapping[str, Sequence[str]]) -> str | None:
    """Return a value that something reads still, of those that nothing is to read; None if there is none.

    Parameters
    ----------
    graph
        Before the change.
    gone
        Names of values that are no longer wanted.
    instead
        What values that are computed in another way are computed from.
    """
    live: set[str] = set()
    stack = list(graph.ends)
    while stack:
        value = stack.pop()
        if value in live:
            continue
        if value in gone:
            return value
        live.add(value)
        node = graph.producer(value)
        if value in instead:
            stack += instead[value]
        elif node is not None:
            stack += [v for v in node.inputs if v is not None]
    return None
