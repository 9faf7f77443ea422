"""Graphs as other exporters and people write them, by style."""

from __future__ import annotations

from tests.sites.handwritten.entry import Graph
from tests.sites.handwritten.operators import OPERATORS, REFUSED
from tests.sites.handwritten.paddle import PADDLE
from tests.sites.handwritten.tensorflow import TENSORFLOW

__all__ = ["GRAPHS", "REFUSED", "Graph"]

GRAPHS: dict[str, Graph] = {graph.name: graph for graph in (*TENSORFLOW, *PADDLE, *OPERATORS)}
