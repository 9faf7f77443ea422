"""Fused operators that join new keys and values to earlier ones and write both: lifted, rewritten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import rewriter
from rewriter.passes import SoftmaxAttention

B, H, G, L, S, D = 2, 4, 2, 3, 5, 8
PACKED: dict[str, Any] = {"q_num_heads": H, "kv_num_heads": G}


def saved(where: Path, packed: bool, past: bool, **attributes: Any) -> Path:
    """Write a model of one fused attention and return its path."""

    def tensor(name: str, *shape: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    def stream(name: str, heads: int, length: int) -> onnx.ValueInfoProto:
        return tensor(name, B, length, heads * D) if packed else tensor(name, B, heads, length, D)

    before = S if past else 0
    inputs = [stream("q", H, L), stream("k", G, L), stream("v", G, L)]
    held = [tensor(name, B, G, S, D) for name in ("past_key", "past_value")] if past else []
    outputs = [stream("y", H, L), *(tensor(n, B, G, before + L, D) for n in ("key", "value"))]
    names = ["q", "k", "v", "", *(x.name for x in held)]
    node = helper.make_node(
        "Attention", names, ["y", "key", "value"], **(PACKED if packed else {}), **attributes
    )
    graph = helper.make_graph([node], "g", [*inputs, *held], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, where / "model.onnx")
    return where / "model.onnx"


def results(path: Path) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    given = {x.name: rng.standard_normal(x.shape).astype(np.float32) for x in session.get_inputs()}
    return [np.asarray(y) for y in session.run(None, given)]


@pytest.mark.parametrize("packed", [False, True], ids=["four axes", "packed"])
@pytest.mark.parametrize("past", [True, False], ids=["after others", "first"])
@pytest.mark.parametrize("causal", [0, 1], ids=["dense", "causal"])
def test_keys_are_read_before_they_are_joined(tmp_path: Path, packed: bool, past: bool, causal: int) -> None:
    path = saved(tmp_path, packed, past, is_causal=causal)
    program = rewriter.load(path)
    assert len(program.sites) == 1, program.refused
    (site,) = program.sites
    wanted = ("q", "past_key", "k", "past_value", "v") if past else ("q", "k", "v")
    assert site.inputs == wanted
    assert (site.heads.plain(), site.kv_heads.plain(), site.keys.plain()) == (H, G, S * past + L)

    apply = SoftmaxAttention()
    rewritten = apply(program)
    assert apply.report is not None
    assert [s.site for s in apply.report.committed] == [site.id], apply.report.refused
    rewritten.save(tmp_path / "rewritten.onnx")
    for old, new in zip(results(path), results(tmp_path / "rewritten.onnx"), strict=True):
        np.testing.assert_allclose(new, old, rtol=0, atol=2e-6)
