"""Operators of the newest opsets: written when a target asks for them, run by the reference evaluator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import rewriter
from rewriter.engine import Pass
from rewriter.errors import InputError
from rewriter.passes import parse_form
from rewriter.program.onnx import OnnxProgram

HEADS, GROUPS, SIZE = 4, 2, 8


class Causal(nn.Module):
    """Causal attention with grouped heads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(SIZE, HEADS * SIZE), nn.Linear(SIZE, 2 * GROUPS * SIZE)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        q = self.q(x).reshape(-1, n, HEADS, SIZE).transpose(1, 2)
        k, v = self.kv(x).reshape(-1, n, 2 * GROUPS, SIZE).transpose(1, 2).chunk(2, 1)
        k, v = (t.repeat_interleave(HEADS // GROUPS, 1) for t in (k, v))
        seen = torch.arange(n)[None] <= torch.arange(n)[:, None]
        scores = (q @ k.transpose(2, 3) * SIZE**-0.5).masked_fill(~seen, -torch.inf)
        result: Tensor = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return result


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    found = tmp_path_factory.mktemp("newer") / "m.onnx"
    shapes = ({1: Dim("n", min=2)},)
    x = torch.randn(1, 9, SIZE)
    torch.onnx.export(Causal().eval(), (x,), found, dynamo=True, input_names=["x"], dynamic_shapes=shapes)
    return found


def tokens(length: int) -> np.ndarray:
    return np.random.default_rng(length).normal(size=(2, length, SIZE)).astype(np.float32)[:1]


def operators(program: rewriter.Program) -> dict[str, ir.Node]:
    assert isinstance(program, OnnxProgram)
    bodies = [program.model.graph, *program.model.functions.values()]
    return {node.op_type: node for body in bodies for node in body}


WRITTEN = {
    "window:window=3,sinks=0": ("onnx:25", "Attention"),
    "linear:feature_map=elu": ("onnx:27", "LinearAttention"),
    "linear:feature_map=relu": ("onnx:28", "LinearAttention"),
    "window:window=3,sinks=2": ("onnx:25+preview", "FlexAttention"),
    "window:window=4,sinks=0": ("onnx:18+preview", "FlexAttention"),
    "softmax": ("onnx:18+preview", "FlexAttention"),
    "gated:bias=1": ("onnx:18+preview", "FlexAttention"),
    "clipped:gamma=-0.03": ("onnx:18+preview", "FlexAttention"),
    "clipped:zeta=1.1,alpha=0.5": ("onnx:23+preview", "FlexAttention"),
}


@pytest.mark.parametrize(("form", "what"), WRITTEN.items(), ids=list(WRITTEN))
def test_one_operator_says_what_the_nodes_say(form: str, what: tuple[str, str], path: Path) -> None:
    target, operator = what
    program = rewriter.load(path)
    plain, step = Pass(parse_form(form))(program), Pass(parse_form(form), target=target)
    new = step(program)
    assert step.report is not None and [s.reason for s in step.report.sites] == [None]
    assert operator in operators(new) and operator not in operators(plain)
    for length in (1, 2, 3, 9, 130):
        x = tokens(length)
        np.testing.assert_allclose(new.run(x)[0], plain.run(x)[0], rtol=2e-5, atol=2e-5)
    new.save(path.parent / "new.onnx")
    np.testing.assert_array_equal(rewriter.load(path.parent / "new.onnx").run(x)[0], new.run(x)[0])


KEPT = {
    "sinks are no window": ("window:window=3,sinks=2", "onnx:25", "left_window_size"),
    "a window that Attention can say": ("window:window=3,sinks=0", "onnx:25+preview", "FlexAttention"),
    "nothing of the preview is asked for": ("window:window=3,sinks=2", "onnx:28", "FlexAttention"),
    "attention that Attention can say": ("softmax", "onnx:23+preview", "FlexAttention"),
    "blocks": ("window:window=4,stride=4,sinks=0", "onnx:18+preview", "FlexAttention"),
    "older than windows": ("window:window=3,sinks=0", "onnx:24", "left_window_size"),
    "older than linear attention": ("linear:feature_map=elu", "onnx:26", "LinearAttention"),
    "features that are made of pairs": ("linear:feature_map=taylor2", "onnx:27", "LinearAttention"),
}


@pytest.mark.parametrize(("form", "target", "what"), KEPT.values(), ids=list(KEPT))
def test_what_an_operator_cannot_say_is_written_in_nodes(
    form: str, target: str, what: str, path: Path
) -> None:
    step = Pass(parse_form(form), target=target)
    found = operators(step(rewriter.load(path)))
    assert step.report is not None and [s.reason for s in step.report.sites] == [None]
    assert what not in found and all(what not in node.attributes for node in found.values())


def test_functions_of_scores_read_nothing_but_the_scores(path: Path) -> None:
    new = Pass(parse_form("window:window=3,sinks=2"), target="onnx:18+preview")(rewriter.load(path))
    assert isinstance(new, OnnxProgram)
    node = operators(new)["FlexAttention"]
    assert node.domain == "ai.onnx.preview" and new.model.opset_imports["ai.onnx.preview"] == 1
    graph = node.attributes["score_mod"].as_graph()
    own = {*graph.inputs, *(x for inner in graph for x in inner.outputs)}
    assert all(x is None or x in own for inner in graph for x in inner.inputs)
    onnx.checker.check_model(ir.to_proto(new.model))


def test_loops_are_not_given_to_the_reference_evaluator(tmp_path: Path) -> None:
    inner = onnx.parser.parse_graph(
        "body (int64 i, bool c, float[2] a) => (bool d, float[2] b) { d = Identity(c) b = Add(a, a) }"
    )
    loop = onnx.helper.make_node("Loop", ["n", "", "x"], ["y"], body=inner)
    graph = onnx.helper.make_graph(
        [loop],
        "g",
        [
            onnx.helper.make_tensor_value_info("n", onnx.TensorProto.INT64, []),
            onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2]),
        ],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 28)], ir_version=11)
    onnx.save(model, tmp_path / "loop.onnx")
    with pytest.raises(InputError, match="ONNX Runtime cannot load"):
        rewriter.load(tmp_path / "loop.onnx").run(np.array(3), np.ones(2, np.float32))


def test_loops_inside_of_functions_of_scores_are_not_given_to_it_either(tmp_path: Path) -> None:
    scores = "float[B, H, I, J]"
    body = f"body (int64 i, bool c, {scores} a) => (bool d, {scores} b) {{ d = Identity(c) b = Add(a, a) }}"
    loop = onnx.helper.make_node("Loop", ["", "", "s"], ["t"], body=onnx.parser.parse_graph(body))
    values = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["B", "H", "I", "J"]) for n in "st"
    ]
    inner = onnx.helper.make_graph([loop], "scores", values[:1], values[1:])
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 2, 3, 4]) for n in "xy")
    node = onnx.helper.make_node("FlexAttention", ["x"] * 3, ["y"], domain="ai.onnx.preview", score_mod=inner)
    opsets = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid("ai.onnx.preview", 1)]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y]), opset_imports=opsets)
    onnx.save(model, tmp_path / "loop.onnx")
    with pytest.raises(InputError, match="ONNX Runtime cannot load"):
        rewriter.load(tmp_path / "loop.onnx").run(np.ones((1, 2, 3, 4), np.float32))
