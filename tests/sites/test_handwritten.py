"""Graphs in the manner of other exporters, and of people."""

from __future__ import annotations

import onnx
import pytest

from rewriter.program.onnx import OnnxProgram
from tests.sites.claims import check_found, check_rewritten
from tests.sites.handwritten import GRAPHS, REFUSED, Graph


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_graph(graph: Graph) -> None:
    model = graph.model()
    onnx.checker.check_model(model)
    program = OnnxProgram(model)
    check_found(program, graph)
    check_rewritten(program, graph.inputs())


@pytest.mark.parametrize("graph", REFUSED, ids=lambda graph: graph.name)
def test_refused_with_the_reason(graph: Graph) -> None:
    program = OnnxProgram(graph.model())
    assert not program.sites
    assert [refusal.missed for refusal in program.refused if str(graph.refused) in refusal.reason] == [True]


def test_there_are_enough() -> None:
    assert len(GRAPHS) >= 20
