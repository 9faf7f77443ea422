"""Small ONNX models for tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def value(name: str, shape: list[int | str | None] | None, dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def tensor(name: str, array: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(array, name)


def model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: dict[str, np.ndarray] | None = None,
    opset: int = 17,
    ir_version: int = 8,
    functions: list[onnx.FunctionProto] | None = None,
    domains: tuple[str, ...] = (),
) -> onnx.ModelProto:
    initializers = [tensor(name, array) for name, array in (constants or {}).items()]
    graph = helper.make_graph(nodes, "test", inputs, outputs, initializers)
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    made: onnx.ModelProto = helper.make_model(
        graph, opset_imports=imports, ir_version=ir_version, functions=functions or []
    )
    return made


def attention_layers(
    opset: int = 17,
    ir_version: int = 8,
    layers: int = 2,
    kv_heads: int = 2,
    masked: bool = True,
    width: int = 32,
) -> onnx.ModelProto:
    """Return layers of grouped-query attention with 4 heads: values ``q0 k0 v0 -> o0``, ``q1`` …

    Inputs ``x [batch, seq, width]`` and, if masked, ``mask [batch, 1, seq, seq]``; output ``y``.
    """
    heads = 4
    rng = np.random.default_rng(0)
    constants = {
        "q_shape": np.array([0, 0, heads, width // heads]),
        "kv_shape": np.array([0, 0, kv_heads, width // heads]),
        "out_shape": np.array([0, 0, width]),
        "repeats": np.repeat(np.arange(kv_heads), heads // kv_heads),
        "scale": np.array((width // heads) ** -0.5, np.float32),
    }
    nodes: list[onnx.NodeProto] = []

    def node(op: str, inputs: list[str], output: str, **attributes: Any) -> None:
        nodes.append(helper.make_node(op, inputs, [output], name=f"{op}_{output}", **attributes))

    x = "x"
    for n in range(layers):
        for part, outer in (("q", width), ("k", kv_heads * width // heads), ("v", kv_heads * width // heads)):
            constants[f"w_{part}{n}"] = (rng.normal(size=(width, outer)) / width**0.5).astype(np.float32)
            node("MatMul", [x, f"w_{part}{n}"], f"{part}_flat{n}")
            node("Reshape", [f"{part}_flat{n}", "q_shape" if part == "q" else "kv_shape"], f"{part}_split{n}")
            node("Transpose", [f"{part}_split{n}"], f"{part}{n}", perm=[0, 2, 1, 3])
        node("Gather", [f"k{n}", "repeats"], f"k_all{n}", axis=1)
        node("Gather", [f"v{n}", "repeats"], f"v_all{n}", axis=1)
        node("Transpose", [f"k_all{n}"], f"k_t{n}", perm=[0, 1, 3, 2])
        node("MatMul", [f"q{n}", f"k_t{n}"], f"raw{n}")
        node("Mul", [f"raw{n}", "scale"], f"scores{n}")
        if masked:
            node("Add", [f"scores{n}", "mask"], f"masked{n}")
        node("Softmax", [f"masked{n}" if masked else f"scores{n}"], f"weights{n}", axis=3)
        node("MatMul", [f"weights{n}", f"v_all{n}"], f"o{n}")
        node("Transpose", [f"o{n}"], f"o_rows{n}", perm=[0, 2, 1, 3])
        x = "y" if n == layers - 1 else f"x{n + 1}"
        node("Reshape", [f"o_rows{n}", "out_shape"], x)
    inputs = [value("x", ["batch", "seq", width])]
    if masked:
        inputs.append(value("mask", ["batch", 1, "seq", "seq"]))
    return model(nodes, inputs, [value("y", ["batch", "seq", width])], constants, opset, ir_version)


def attention_inputs(
    batch: int = 2, length: int = 5, masked: bool = True, width: int = 32
) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(batch, length, width)).astype(np.float32)
    if not masked:
        return [x]
    mask = np.where(rng.random((batch, 1, length, length)) < 0.3, -np.inf, 0).astype(np.float32)
    mask[..., 0] = 0  # no row is empty
    return [x, mask]
