"""Models of several attention layers in ONNX and FX, and the same with one fault."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from rewriter.program.fx import FxProgram, trace
from rewriter.program.onnx import OnnxProgram

WIDTH, HEADS = 16, 2
SIZE = WIDTH // HEADS

FAULTS = ("1e-3", "scale", "swapped heads", "permuted K", "mask corner", "query weights", "output weights")


def _weights(rng: np.random.Generator, broken: str) -> dict[str, np.ndarray]:
    w = {n: (rng.standard_normal((WIDTH, WIDTH)) / 4).astype(np.float32) for n in "qkvo"}
    if broken == "query weights":
        w["q"] = np.roll(w["q"], SIZE, axis=1)
    if broken == "output weights":
        w["o"] = w["o"].T.copy()
    return w


def _corner() -> np.ndarray:
    corner = np.zeros((9, 9), np.float32)
    corner[0, -1] = -1e4
    return corner


class _Writer:
    """Writes layers; names stay the same where a fault allows it."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {
            "split": np.array([0, 0, HEADS, SIZE]),
            "joined": np.array([0, 0, WIDTH]),
            "scale": np.array(SIZE**-0.5, np.float32),
            "more": np.array(1.001, np.float32),
            "swap": np.array([1, 0]),
            "shuffle": np.array([1, 0, *range(2, SIZE)]),
            "corner": _corner(),
        }

    def add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], output, **attributes))
        return output

    def layer(self, k: int, x: str, w: dict[str, np.ndarray], fault: str) -> str:
        self.constants |= {f"{k}.w{n}": array for n, array in w.items()}
        q, k_, v = (self._heads(k, n, x) for n in "qkv")
        if fault == "permuted K":
            k_ = self.add("Gather", [k_, "shuffle"], f"{k}.shuffled", axis=3)
        keys = self.add("Transpose", [k_], f"{k}.kt", perm=[0, 1, 3, 2])
        scores = self.add("MatMul", [q, keys], f"{k}.scores")
        if fault != "scale":
            scores = self.add("Mul", [scores, "scale"], f"{k}.scaled")
        if fault == "mask corner":
            scores = self.add("Add", [scores, "corner"], f"{k}.masked")
        shares = self.add("Softmax", [scores], f"{k}.weights", axis=-1)
        y = self.add("MatMul", [shares, v], f"{k}.attended")
        if fault == "1e-3":
            y = self.add("Mul", [y, "more"], f"{k}.off")
        if fault == "swapped heads":
            y = self.add("Gather", [y, "swap"], f"{k}.swapped", axis=1)
        y = self.add("Transpose", [y], f"{k}.turned", perm=[0, 2, 1, 3])
        y = self.add("Reshape", [y, "joined"], f"{k}.merged")
        y = self.add("MatMul", [y, f"{k}.wo"], f"{k}.out")
        return self.add("Add", [x, y], f"{k}.residual")

    def _heads(self, k: int, n: str, x: str) -> str:
        y = self.add("MatMul", [x, f"{k}.w{n}"], f"{k}.{n}")
        y = self.add("Reshape", [y, "split"], f"{k}.{n}.heads")
        return self.add("Transpose", [y], f"{k}.{n}.turned", perm=[0, 2, 1, 3])


def onnx_layers(layers: int = 12, at: int | None = None, fault: str = "") -> OnnxProgram:
    """Return ``x + attention(x)`` so many times, with a fault in one layer."""
    rng, writer, x = np.random.default_rng(0), _Writer(), "x"
    for k in range(layers):
        broken = fault if k == at else ""
        x = writer.layer(k, x, _weights(rng, broken), broken)
    shape: list[str | int | None] = ["batch", 9, WIDTH]
    graph = helper.make_graph(
        writer.nodes,
        "layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in writer.constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return OnnxProgram(model, f"layers with {fault} at {at}" if fault else "layers")


class _Layer(nn.Module):
    def __init__(self, weights: dict[str, np.ndarray], fault: str) -> None:
        super().__init__()
        self.fault = fault
        for name, array in weights.items():
            self.register_buffer(name, torch.from_numpy(array))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = ((x @ getattr(self, n)).unflatten(2, (HEADS, SIZE)).transpose(1, 2) for n in "qkv")
        if self.fault == "permuted K":
            k = k[..., [1, 0, *range(2, SIZE)]]
        scores = q @ k.transpose(-1, -2)
        if self.fault != "scale":
            scores = scores / math.sqrt(SIZE)
        if self.fault == "mask corner":
            scores = scores + torch.from_numpy(_corner())
        y = scores.softmax(-1) @ v
        if self.fault == "1e-3":
            y = y * 1.001
        if self.fault == "swapped heads":
            y = y.flip(1)
        result: torch.Tensor = x + y.transpose(1, 2).flatten(2) @ self.o
        return result


class _Layers(nn.Module):
    def __init__(self, layers: int, at: int | None, fault: str) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        made = []
        for k in range(layers):
            broken = fault if k == at else ""
            made.append(_Layer(_weights(rng, broken), broken))
        self.layers = nn.ModuleList(made)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def fx_layers(layers: int = 12, at: int | None = None, fault: str = "") -> FxProgram:
    """Return the same model, traced from PyTorch."""
    batch = torch.export.Dim("batch", min=1, max=64)
    return trace(
        _Layers(layers, at, fault).eval(), (torch.zeros(2, 9, WIDTH),), dynamic_shapes={"x": {0: batch}}
    )
