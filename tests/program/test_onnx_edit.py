from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from rewriter.algebra.sizes import Size
from rewriter.errors import InputError
from rewriter.lower.emitter import Emitter
from rewriter.lower.errors import EmitError
from rewriter.program import onnx_edit
from rewriter.program.onnx import OnnxProgram
from rewriter.program.program import Replacement
from tests.program.onnx_models import attention_inputs, attention_layers, model, value


def attention(layer: int, masked: bool = True, scale: float = 8**-0.5, **metadata: str) -> Replacement:
    """Return the edit that computes the attention of a layer by the emitter's own."""

    def build(e: Emitter, inputs: Sequence[Any]) -> Any:
        bias = inputs[3] if masked else None
        return e.attention(*inputs[:3], scale=scale, bias=bias, empty_row="never")

    names = (f"q{layer}", f"k{layer}", f"v{layer}", *(("mask",) if masked else ()))
    about = {"form": "softmax", "fidelity": "exact"} | metadata
    return Replacement(f"o{layer}", names, build, f"attention.{layer}", about)


@pytest.mark.parametrize("inline", [False, True], ids=["function", "inline"])
@pytest.mark.parametrize("target", ["onnx", "ort", "onnx:23", "onnx:24"])
@pytest.mark.parametrize(
    ("opset", "ir_version"), [(11, 4), (12, 7), (13, 7), (17, 8), (18, 8), (21, 10), (23, 10)]
)
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_replaced_models_are_valid_and_equal(
    tmp_path: Path, opset: int, ir_version: int, target: str, inline: bool, kv_heads: int
) -> None:
    program = OnnxProgram(attention_layers(opset, ir_version, kv_heads=kv_heads))
    inputs = attention_inputs()
    new = program.replace([attention(0), attention(1)], target=target, inline=inline)
    new.save(tmp_path / "m.onnx")
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    saved = OnnxProgram.load(tmp_path / "m.onnx")
    assert saved.opset == max(opset, {"onnx:23": 23, "onnx:24": 24}.get(target, 0))
    np.testing.assert_allclose(saved.run(*inputs)[0], program.run(*inputs)[0], rtol=2e-5, atol=2e-6)


def test_equal_sites_are_one_function() -> None:
    program = OnnxProgram(attention_layers(layers=3))
    new = program.replace([attention(0), attention(1), attention(2, scale=1.0)])
    calls = [(n.name, n.op, n.outputs) for n in new.graph.nodes if n.op.startswith("rewriter::")]
    assert calls == [
        ("attention.0", "rewriter::softmax_attention_0", ("o0",)),
        ("attention.1", "rewriter::softmax_attention_0", ("o1",)),
        ("attention.2", "rewriter::softmax_attention_1", ("o2",)),
    ]
    assert len(new.model.functions) == 2
    again = new.replace([attention(2)])
    assert [n.op for n in again.graph.nodes if n.op.startswith("rewriter::")] == [
        "rewriter::softmax_attention_0"
    ] * 3
    assert len(again.model.functions) == 1


def test_what_is_not_read_any_more_is_gone() -> None:
    program = OnnxProgram(attention_layers())
    new = program.replace([attention(0), attention(1)])
    names = {n.name for n in new.graph.nodes}
    assert not names & {"Softmax_weights0", "MatMul_raw1", "Gather_k_all0", "Transpose_k_t0"}
    assert "MatMul_q_flat0" in names and set(new.graph.constants) == set(program.graph.constants) - {
        "repeats", "scale"
    }  # fmt: skip
    assert "repeats" in program.graph.constants and "Softmax_weights0" in {
        n.name for n in program.graph.nodes
    }


def test_what_is_still_read_stays() -> None:
    made = attention_layers(layers=1)
    made.graph.output.append(value("weights0", ["batch", 4, "seq", "seq"]))
    program = OnnxProgram(made)
    inputs = attention_inputs()
    new = program.replace([attention(0)])
    assert "Softmax_weights0" in {n.name for n in new.graph.nodes}
    for a, b in zip(new.run(*inputs), program.run(*inputs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_readers_in_inner_graphs_and_outputs_follow() -> None:
    made = attention_layers(layers=1)
    inner = helper.make_graph([helper.make_node("Neg", ["o0"], ["n"])], "inner", [], [value("n", None)])
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "yes"))
    made.graph.node.append(helper.make_node("If", ["yes"], ["z"], then_branch=inner, else_branch=inner))
    made.graph.output.extend([value("o0", ["batch", 4, "seq", 8]), value("z", ["batch", 4, "seq", 8])])
    program = OnnxProgram(made)

    def zeros(e: Emitter, inputs: Sequence[Any]) -> Any:
        return e.map("mul", inputs[0], e.constant(0.0, "float32"))

    new = program.replace([Replacement("o0", ("q0",), zeros, "site", {})])
    assert new.outputs == ("y", "o0", "z")
    assert all((result == 0).all() for result in new.run(*attention_inputs()))


def test_an_unread_inner_graph_lets_go_of_what_it_read() -> None:
    inner = helper.make_graph([helper.make_node("Add", ["a", "w"], ["n"])], "inner", [], [value("n", None)])
    nodes = [
        helper.make_node("Neg", ["x"], ["a"], name="gone"),
        helper.make_node("If", ["yes"], ["b"], then_branch=inner, else_branch=inner, name="gone too"),
        helper.make_node("Abs", ["b"], ["y"], name="stays"),
    ]
    constants = {"yes": np.array(True), "w": np.ones(3, np.float32)}
    program = OnnxProgram(model(nodes, [value("x", [3])], [value("y", [3])], constants))
    new = program.replace([Replacement("b", ("x",), lambda e, xs: e.map("exp", xs[0]), "site", {})])
    assert [n.name for n in new.graph.nodes] == ["site", "stays"] and not new.graph.constants
    x = np.arange(3, dtype=np.float32)
    np.testing.assert_allclose(new.run(x)[0], np.exp(x), rtol=1e-6)


def test_the_graph_says_what_was_done() -> None:
    program = OnnxProgram(attention_layers(ir_version=10))
    new = program.replace([attention(1, form="window:window=4", error="1e-3"), attention(0)])
    sites = json.loads(new.metadata["rewriter.sites"])
    assert list(sites) == ["attention.0", "attention.1"]
    assert sites["attention.1"] == {
        "error": "1e-3", "fidelity": "exact", "form": "window:window=4", "function": "window_attention_0"
    }  # fmt: skip
    node = next(n for n in new.model.graph if n.name == "attention.1")
    assert node.metadata_props["rewriter.form"] == "window:window=4"
    function = new.model.functions["rewriter", "window_attention_0", ""]
    assert function.doc_string == "Written by rewriter: form window:window=4, fidelity exact."
    more = new.replace([attention(0, form="other")])
    assert set(json.loads(more.metadata["rewriter.sites"])) == {"attention.0", "attention.1"}


def test_same_edits_same_bytes(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        OnnxProgram(attention_layers()).replace([attention(0), attention(1)]).save(tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_site_may_be_replaced_again_inline() -> None:
    program = OnnxProgram(attention_layers())
    new = program
    for _ in range(3):
        new = new.replace([attention(0)], inline=True)
    names = [n.name for n in new.graph.nodes]
    assert len(set(names)) == len(names)
    inputs = attention_inputs()
    np.testing.assert_allclose(new.run(*inputs)[0], program.run(*inputs)[0], rtol=1e-5, atol=1e-6)


def test_dynamic_sizes_are_computed_in_the_function() -> None:
    program = OnnxProgram(attention_layers(layers=1, masked=False))
    seq = Size.symbol("seq")

    def build(e: Emitter, inputs: Sequence[Any]) -> Any:
        q, k, v = inputs
        ahead = e.map("le", e.iota(seq), e.reshape(e.iota(seq), [seq, 1]))
        bias = e.map("where", ahead, e.constant(0.0, "float32"), e.constant(-np.inf, "float32"))
        return e.attention(q, k, v, scale=8**-0.5, bias=e.reshape(bias, [1, 1, seq, seq]))

    new = program.replace([Replacement("o0", ("q0", "k0", "v0"), build, "attention.0", {"form": "softmax"})])
    causal = OnnxProgram(attention_layers(layers=1))
    for length in (1, 4, 7):
        (x,) = attention_inputs(length=length, masked=False)
        mask = np.where(np.tril(np.ones((2, 1, length, length))), 0, -np.inf).astype(np.float32)
        np.testing.assert_allclose(new.run(x)[0], causal.run(x, mask)[0], rtol=1e-5, atol=1e-6)


def test_old_files_keep_their_constants_constant() -> None:
    made = attention_layers(opset=11, ir_version=3)
    made.graph.input.extend(value(t.name, list(t.dims), t.data_type) for t in made.graph.initializer)
    new = OnnxProgram(made).replace([attention(0)])
    assert new.model.ir_version == 8 and [v.name for v in new.model.graph.inputs] == ["x", "mask"]
    inputs = attention_inputs()
    np.testing.assert_allclose(new.run(*inputs)[0], OnnxProgram(made).run(*inputs)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "made", [attention_layers(), attention_layers(opset=11, ir_version=3)], ids=["new", "old"]
)
def test_large_constants_are_initializers(
    made: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_edit, "_LARGE", 128)
    factors = np.random.default_rng(0).random((1, 4, 1, 8), np.float32)

    def build(e: Emitter, inputs: Sequence[Any]) -> Any:
        scaled = e.map("mul", inputs[0], e.constant(factors, "float32"))
        return e.map("mul", scaled, e.constant(factors[:, :1], "float32"))

    new = OnnxProgram(made).replace([Replacement("o0", ("q0",), build, "edit", {"rule": "r"})], inline=True)
    new.save(tmp_path / "m.onnx")
    saved = onnx.load(tmp_path / "m.onnx")
    weights = {t.name for t in saved.graph.initializer}
    small = [n.output[0] for n in saved.graph.node if n.op_type == "Constant"]
    read = [x for n in saved.graph.node if n.op_type == "Mul" for x in n.input]
    assert len(weights.intersection(read)) == 2 and len(set(small).intersection(read)) == 1
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    inputs = attention_inputs()
    found = OnnxProgram.load(tmp_path / "m.onnx").run(*inputs)[0]
    np.testing.assert_array_equal(found, new.run(*inputs)[0])


def test_no_edit_is_no_change(tmp_path: Path) -> None:
    program = OnnxProgram(attention_layers())
    program.replace([]).save(tmp_path / "a.onnx")
    program.save(tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_edits_that_cannot_be_made() -> None:
    program = OnnxProgram(attention_layers())
    wrong = Replacement("o0", ("q0",), lambda e, xs: e.map("cast", xs[0], dtype="float16"), "site", {})
    with pytest.raises(EmitError, match="gives float16; the model needs float32"):
        program.replace([wrong])
    unknown = Replacement("o0", ("q0",), lambda e, xs: e.reshape(xs[0], ["u", "v", 2]), "site", {})
    with pytest.raises(EmitError, match="cannot be computed"):
        program.replace([unknown])
    with pytest.raises(ValueError, match="'x' is not computed"):
        program.replace([Replacement("x", (), lambda e, xs: e.constant(1.0, "float32"), "site", {})])


def test_conversion_that_cannot_be_done_is_refused() -> None:
    body = [helper.make_node("Neg", ["a"], ["b"])]
    function = helper.make_function("d", "f", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    made = attention_layers()
    made.functions.append(function)
    made.opset_import.append(helper.make_opsetid("d", 1))
    made.graph.node.append(helper.make_node("f", ["y"], ["z"], domain="d"))
    with pytest.raises(InputError, match="use target onnx"):
        OnnxProgram(made).replace([attention(0)], target="onnx:23")
    with pytest.raises(InputError, match="newer than the installed"):
        OnnxProgram(attention_layers()).replace([attention(0)], target="onnx:999")


def test_a_model_is_not_lowered_to_an_older_opset() -> None:
    program = OnnxProgram(attention_layers(opset=17))
    with pytest.raises(InputError, match="has opset 17, which is not lowered to 16; use target onnx"):
        program.replace([attention(0)], target="onnx:16")
    for target in ("onnx", "onnx:17", "onnx:16+preview"):
        assert program.replace([attention(0)], target=target).opset == 17


def test_conversion_keeps_large_constants() -> None:
    program = OnnxProgram(attention_layers(opset=13, width=64))
    new = program.replace([attention(0, scale=16**-0.5)], target="onnx:23")
    assert "ai.onnx::Attention" not in {n.op for n in new.graph.nodes}  # it is inside the function
    assert [n.op_type for f in new.model.functions.values() for n in f if n.op_type == "Attention"] == [
        "Attention"
    ]
    inputs = attention_inputs(width=64)
    np.testing.assert_allclose(new.run(*inputs)[0], program.run(*inputs)[0], rtol=1e-5, atol=1e-5)
