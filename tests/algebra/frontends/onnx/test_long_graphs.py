"""Long ONNX graphs take little time."""

from __future__ import annotations

import time

from rewriter.algebra.frontends.onnx import translate
from tests.algebra.frontends.onnx.case import graph


def test_twenty_thousand_nodes() -> None:
    body = "\n".join(
        f"s{k} = Shape (x{k})\n b{k} = Gather (s{k}, i0)\n u{k} = Unsqueeze (b{k}, ax)\n"
        f"t{k} = Concat <axis = 0> (u{k}, minus)\n r{k} = Reshape (x{k}, t{k})\n x{k + 1} = Exp (r{k})"
        for k in range(3334)
    )
    constants = "int64 i0 = {0}, int64[1] ax = {0}, int64[1] minus = {-1}"
    program = graph(f"g (float[batch, 24] x0) => (x3334) <{constants}> {{{body}}}")
    view = program.graph
    assert len(view.nodes) > 20_000
    start = time.process_time()
    forms = translate(view, 17)
    assert time.process_time() - start < 6  # 0.5 s on an idle machine
    assert ", ".join(map(str, forms["x3334"].shape)) == "batch, 24"
