"""What opaque operators do to axes: every rule, in both dialects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional as F

import rewriter
from rewriter.algebra.frontends.axes import AxisRule, behaviour, is_random

IMAGE = torch.randn(2, 8, 6, 6)

TRACED: dict[str, tuple[Callable[[Tensor], Tensor], AxisRule | None, bool]] = {
    "layer norm": (lambda x: F.layer_norm(x, (6,)), "kept", False),
    "group norm": (lambda x: F.group_norm(x, 2), "kept", False),
    "batch norm, one of three results": (
        lambda x: F.batch_norm(x, torch.zeros(8), torch.ones(8)),
        "kept",
        False,
    ),
    "rms norm": (lambda x: F.rms_norm(x, (6,)), "kept", False),
    "gelu": (F.gelu, "pointwise", False),
    "hard swish": (F.hardswish, "kept", False),
    "of two tensors": (lambda x: torch.atan2(x, x[:, :1]), "pointwise", False),
    "running sum": (lambda x: x.cumsum(1), "kept", False),
    "convolution": (lambda x: F.conv2d(x, torch.ones(4, 8, 3, 3)), "convolved", False),
    "along one axis": (lambda x: F.conv1d(x.flatten(2), torch.ones(4, 8, 3)), "convolved", False),
    "transposed": (lambda x: F.conv_transpose2d(x, torch.ones(8, 4, 2, 2), stride=2), "convolved", False),
    "largest": (lambda x: F.max_pool2d(x, 2), "resampled", False),
    "mean": (lambda x: F.avg_pool2d(x, 2), "resampled", False),
    "made larger": (lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"), "resampled", False),
    "mirrored at the edges": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), "resampled", False),
    "active dropout": (lambda x: F.dropout(x, 0.5, True), "kept", True),
    "noise": (torch.randn_like, None, True),
    "sorted": (lambda x: x.sort(1).values, None, False),
    "transformed": (lambda x: torch.fft.fft(x).real, None, False),
    "places into channels": (lambda x: F.pixel_unshuffle(x, 2), None, False),
}


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("name", TRACED)
def test_traced_operators(name: str) -> None:
    function, rule, random = TRACED[name]
    graph = rewriter.trace(Function(function), (IMAGE,)).graph
    found = behaviour(graph, graph.outputs[0])
    assert (None if found is None else found.rule) == rule
    assert is_random(graph, graph.outputs[0]) == random
    if found is not None and not name.startswith("along"):
        assert found.operands[0] == graph.inputs[0]


WRITTEN: dict[str, tuple[str, dict[str, Any], list[list[int]], AxisRule | None]] = {
    "layer norm": ("LayerNormalization", {}, [[6]], "kept"),
    "gelu": ("Gelu", {}, [], "kept"),
    "convolution": ("Conv", {}, [[4, 8, 3, 3]], "convolved"),
    "largest": ("MaxPool", {"kernel_shape": [2, 2]}, [], "resampled"),
    "mean of all": ("GlobalAveragePool", {}, [], "resampled"),
    "steps turned round": ("ReverseSequence", {"batch_axis": 0, "time_axis": 1}, [], None),
    "transformed": ("DepthToSpace", {"blocksize": 2}, [], None),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_operators_of_files(name: str, tmp_path: Path) -> None:
    op, attributes, weights, rule = WRITTEN[name]
    names = [f"w{k}" for k in range(len(weights))]
    held = [
        helper.make_tensor(n, TensorProto.FLOAT, shape, torch.ones(shape).flatten().tolist())
        for n, shape in zip(names, weights, strict=True)
    ]
    if op == "ReverseSequence":
        names, held = ["w0"], [helper.make_tensor("w0", TensorProto.INT64, [2], [1, 2])]
    node = helper.make_node(op, ["x", *names], ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 8, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        held,
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    found = behaviour(rewriter.load(path).graph, "y")
    assert (None if found is None else (found.rule, found.operands[0])) == (rule and (rule, "x"))


def test_the_second_result_has_no_rule() -> None:
    def places(x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2, return_indices=True)[1]

    graph = rewriter.trace(Function(places), (IMAGE,)).graph
    assert behaviour(graph, graph.outputs[0]) is None


def test_an_input_has_none() -> None:
    graph = rewriter.trace(Function(F.gelu), (IMAGE,)).graph
    assert behaviour(graph, graph.inputs[0]) is None
    assert not is_random(graph, graph.inputs[0])
