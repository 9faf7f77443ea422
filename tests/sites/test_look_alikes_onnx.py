"""Look-alikes as ONNX graphs: what is no attention is saved as it was, node by node and byte by byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import rewriter
from rewriter.passes import SoftmaxAttention, WindowAttention
from tests.sites.look_alikes.graphs import GRAPHS

WIDE = 4096


def without_notes(path: Path) -> bytes:
    """Return the graph without the shapes that a file may state about values."""
    graph = onnx.load(path).graph
    del graph.value_info[:]
    found: bytes = graph.SerializeToString(deterministic=True)
    return found


@pytest.mark.parametrize("name", GRAPHS)
def test_nothing_is_mistaken(name: str, tmp_path: Path) -> None:
    model, kinds, words = GRAPHS[name]
    original, before, after = (tmp_path / f"{part}.onnx" for part in ("original", "before", "after"))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, original)
    rewriter.load(original).save(before)
    program = rewriter.load(original)
    assert {site.kind for site in program.sites} <= set(kinds)
    if not program.sites and words:
        said = [refusal.reason for refusal in program.refused]
        assert any(word in text for word in words for text in said), said
    for apply in (SoftmaxAttention(verify=False), WindowAttention(window=WIDE, verify=False)):
        if not program.sites:
            with pytest.raises(rewriter.RewriterError, match="none of the 0 sites"):
                apply(program)
        rewritten = apply(program) if program.sites else program
        rewritten.save(after)
        if rewritten is program:
            assert after.read_bytes() == before.read_bytes()
            assert without_notes(after) == without_notes(original)
            continue
        rng = np.random.default_rng(0)
        inputs = {
            v.name: rng.standard_normal([d.dim_value for d in v.type.tensor_type.shape.dim]).astype(
                np.float32
            )
            for v in model.graph.input
        }
        for a, b in zip(rewritten.run(**inputs), program.run(**inputs), strict=True):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-3, atol=1e-4)
