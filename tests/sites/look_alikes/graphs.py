"""ONNX graphs written by hand: what exporters write that looks like attention, and is none or another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from tests.program.onnx_models import FLOAT, model, value

__all__ = ["GRAPHS", "graph"]

Node = onnx.NodeProto


def node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> Node:
    return helper.make_node(op, list(inputs), [output], name=f"{op}_{output}", **attributes)


def graph(
    nodes: list[Node],
    inputs: dict[str, list[int | str | None]],
    output: list[int | str | None],
    constants: dict[str, np.ndarray] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """Return a model whose result is called ``y``."""
    taken = [value(name, shape, FLOAT) for name, shape in inputs.items()]
    return model(nodes, taken, [value("y", output)], constants, opset, ir_version=9)


QKV: dict[str, list[int | str | None]] = {"q": [2, 4, 6, 8], "k": [2, 4, 6, 8], "v": [2, 4, 6, 8]}
RESULT: list[int | str | None] = [2, 4, 6, 8]
TRANSPOSE = node("Transpose", ["k"], "kt", perm=[0, 1, 3, 2])
SCORES = node("MatMul", ["q", "kt"], "s")
SOFTMAX = node("Softmax", ["s"], "w", axis=-1)
PRODUCT = node("MatMul", ["w", "v"], "y")


def active_dropout() -> onnx.ModelProto:
    """Dropout that a training export left on."""
    nodes = [
        TRANSPOSE,
        SCORES,
        SOFTMAX,
        helper.make_node("Dropout", ["w", "ratio", "on"], ["d"], name="Dropout_d", seed=7),
        node("MatMul", ["d", "v"], "y"),
    ]
    return graph(nodes, QKV, RESULT, {"ratio": np.array(0.5, np.float32), "on": np.array(True)})


def flattened_softmax() -> onnx.ModelProto:
    """Before opset 13, a softmax runs over all axes from ``axis`` on."""
    return graph([TRANSPOSE, SCORES, node("Softmax", ["s"], "w", axis=2), PRODUCT], QKV, RESULT, opset=11)


def default_softmax() -> onnx.ModelProto:
    """Before opset 13, ``axis`` is 1 if it is not given."""
    return graph([TRANSPOSE, SCORES, node("Softmax", ["s"], "w"), PRODUCT], QKV, RESULT, opset=11)


def over_queries() -> onnx.ModelProto:
    return graph([TRANSPOSE, SCORES, node("Softmax", ["s"], "w", axis=2), PRODUCT], QKV, RESULT)


def wrong_permutation() -> onnx.ModelProto:
    """All sizes are equal, and the keys' heads and tokens are exchanged."""
    same: list[int | str | None] = [4, 4, 4, 4]
    nodes = [node("Transpose", ["k"], "kt", perm=[0, 2, 1, 3]), SCORES, SOFTMAX, PRODUCT]
    return graph(nodes, {"q": same, "k": same, "v": same}, same)


def hard_maximum() -> onnx.ModelProto:
    return graph([TRANSPOSE, SCORES, node("Hardmax", ["s"], "w", axis=-1), PRODUCT], QKV, RESULT)


def router() -> onnx.ModelProto:
    """The best two of four experts, by their gates."""
    rng = np.random.default_rng(0)
    nodes = [
        node("MatMul", ["x", "gate"], "logits"),
        node("Softmax", ["logits"], "gates", axis=-1),
        helper.make_node("TopK", ["gates", "two"], ["best", "chosen"], name="TopK", axis=-1),
        node("Einsum", ["x", "experts"], "all", equation="btd,edf->btef"),
        node("Unsqueeze", ["chosen", "last"], "wide"),
        node("Expand", ["wide", "shape"], "index"),
        node("GatherElements", ["all", "index"], "picked", axis=2),
        node("Unsqueeze", ["best", "last"], "factor"),
        node("Mul", ["picked", "factor"], "weighted"),
        node("ReduceSum", ["weighted", "two"], "y", keepdims=0),
    ]
    constants: dict[str, np.ndarray] = {
        "gate": rng.standard_normal((8, 4)).astype(np.float32),
        "experts": rng.standard_normal((4, 8, 8)).astype(np.float32),
        "two": np.array([2]),
        "last": np.array([-1]),
        "shape": np.array([2, 6, 2, 8]),
    }
    return graph(nodes, {"x": [2, 6, 8]}, [2, 6, 8], constants)


def detection_bins() -> onnx.ModelProto:
    """Sides of boxes as expected bins, in the layout of a convolution."""
    nodes = [
        node("Reshape", ["x", "shape"], "sides"),
        node("Transpose", ["sides"], "bins", perm=[0, 2, 1, 3]),
        node("Softmax", ["bins"], "p", axis=1),
        node("Conv", ["p", "bin"], "sum"),
        node("Reshape", ["sum", "out"], "y"),
    ]
    constants = {
        "shape": np.array([1, 4, 16, 20]),
        "bin": np.arange(16, dtype=np.float32).reshape(1, 16, 1, 1),
        "out": np.array([1, 4, 20]),
    }
    return graph(nodes, {"x": [1, 64, 20]}, [1, 4, 20], constants)


def squeeze_excite() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    nodes = [
        node("GlobalAveragePool", ["x"], "mean"),
        node("Conv", ["mean", "down"], "small"),
        node("Relu", ["small"], "bent"),
        node("Conv", ["bent", "up"], "large"),
        node("HardSigmoid", ["large"], "gate"),
        node("Mul", ["x", "gate"], "y"),
    ]
    constants = {
        "down": rng.standard_normal((2, 8, 1, 1)).astype(np.float32),
        "up": rng.standard_normal((8, 2, 1, 1)).astype(np.float32),
    }
    return graph(nodes, {"x": [1, 8, 5, 5]}, [1, 8, 5, 5], constants)


def recogniser_classes() -> onnx.ModelProto:
    """Text lines to characters: a softmax per step, and an addition of the bias before it."""
    rng = np.random.default_rng(0)
    nodes = [
        node("MatMul", ["x", "w"], "h"),
        node("Add", ["h", "b"], "logits"),
        node("Softmax", ["logits"], "y", axis=2),
    ]
    constants = {
        "w": rng.standard_normal((8, 97)).astype(np.float32),
        "b": rng.standard_normal(97).astype(np.float32),
    }
    return graph(nodes, {"x": [1, 40, 8]}, [1, 40, 97], constants)


def masked_afterwards() -> onnx.ModelProto:
    nodes = [
        TRANSPOSE,
        SCORES,
        SOFTMAX,
        node("Trilu", ["w"], "cut", upper=0),
        node("MatMul", ["cut", "v"], "y"),
    ]
    return graph(nodes, QKV, RESULT)


def masked_to_zero() -> onnx.ModelProto:
    """The lower triangle of the scores is kept, and 0 is no hidden score."""
    nodes = [
        TRANSPOSE,
        SCORES,
        node("Trilu", ["s"], "cut", upper=0),
        node("Softmax", ["cut"], "w", axis=-1),
        PRODUCT,
    ]
    return graph(nodes, QKV, RESULT)


def scattered_weights() -> onnx.ModelProto:
    nodes = [
        TRANSPOSE,
        SCORES,
        SOFTMAX,
        node("ScatterND", ["w", "places", "zeros"], "changed"),
        node("MatMul", ["changed", "v"], "y"),
    ]
    constants: dict[str, np.ndarray] = {
        "places": np.array([[0, 1]]),
        "zeros": np.zeros((1, 6, 6), np.float32),
    }
    return graph(nodes, QKV, RESULT, constants)


def two_products() -> onnx.ModelProto:
    """A perceptron of two layers, written as products."""
    rng = np.random.default_rng(0)
    nodes = [
        node("MatMul", ["x", "a"], "h"),
        node("Sigmoid", ["h"], "g"),
        node("Mul", ["h", "g"], "swish"),
        node("MatMul", ["swish", "b"], "y"),
    ]
    constants = {
        "a": rng.standard_normal((8, 16)).astype(np.float32),
        "b": rng.standard_normal((16, 8)).astype(np.float32),
    }
    return graph(nodes, {"x": [2, 6, 8]}, [2, 6, 8], constants)


def recurrent_attention() -> onnx.ModelProto:
    """Additive scores: a projection of the state plus one of the tokens, through tanh, to one number."""
    rng = np.random.default_rng(0)
    nodes = [
        node("MatMul", ["h", "wh"], "ph"),
        node("MatMul", ["x", "wx"], "px"),
        node("Add", ["ph", "px"], "sum"),
        node("Tanh", ["sum"], "bent"),
        node("MatMul", ["bent", "u"], "e"),
        node("Softmax", ["e"], "w", axis=1),
        node("Mul", ["w", "x"], "weighted"),
        node("ReduceSum", ["weighted", "one"], "y", keepdims=0),
    ]
    constants: dict[str, np.ndarray] = {
        "wh": rng.standard_normal((8, 5)).astype(np.float32),
        "wx": rng.standard_normal((8, 5)).astype(np.float32),
        "u": rng.standard_normal((5, 1)).astype(np.float32),
        "one": np.array([1]),
    }
    return graph(nodes, {"h": [2, 1, 8], "x": [2, 6, 8]}, [2, 8], constants)


def quantised_scores() -> onnx.ModelProto:
    """Scores are rounded to 8 bits and back: no function that attention is exact for."""
    nodes = [
        TRANSPOSE,
        SCORES,
        helper.make_node("QuantizeLinear", ["s", "step", "zero"], ["s8"], name="Quantize"),
        helper.make_node("DequantizeLinear", ["s8", "step", "zero"], ["sd"], name="Dequantize"),
        node("Softmax", ["sd"], "w", axis=-1),
        PRODUCT,
    ]
    return graph(nodes, QKV, RESULT, {"step": np.array(0.5, np.float32), "zero": np.array(0, np.int8)})


def repeated_by_tile() -> onnx.ModelProto:
    """Heads are tiled where they should be repeated: query head h meets key head h modulo 2."""
    nodes = [
        node("Tile", ["k", "times"], "kk"),
        node("Tile", ["v", "times"], "vv"),
        node("Transpose", ["kk"], "kt", perm=[0, 1, 3, 2]),
        SCORES,
        SOFTMAX,
        node("MatMul", ["w", "vv"], "y"),
    ]
    shapes: dict[str, list[int | str | None]] = {"q": [2, 4, 6, 8], "k": [2, 2, 6, 8], "v": [2, 2, 6, 8]}
    return graph(nodes, shapes, RESULT, {"times": np.array([1, 2, 1, 1])})


def keys_tiled_values_repeated() -> onnx.ModelProto:
    """Keys are tiled and values repeated: the groups of the two do not agree."""
    nodes = [
        node("Tile", ["k", "times"], "kk"),
        node("Unsqueeze", ["v", "two"], "v5"),
        node("Expand", ["v5", "five"], "vx"),
        node("Reshape", ["vx", "four"], "vv"),
        node("Transpose", ["kk"], "kt", perm=[0, 1, 3, 2]),
        SCORES,
        SOFTMAX,
        node("MatMul", ["w", "vv"], "y"),
    ]
    shapes: dict[str, list[int | str | None]] = {"q": [2, 4, 6, 8], "k": [2, 2, 6, 8], "v": [2, 2, 6, 8]}
    constants = {
        "times": np.array([1, 2, 1, 1]),
        "two": np.array([2]),
        "five": np.array([2, 2, 2, 6, 8]),
        "four": np.array([2, 4, 6, 8]),
    }
    return graph(nodes, shapes, RESULT, constants)


Graph = tuple[onnx.ModelProto, tuple[str, ...], tuple[str, ...]]
"""A model, what a site in it may be called, and words of a reason why there is none."""

ANY = ("",)

GRAPHS: dict[str, Graph] = {
    "active dropout": (active_dropout(), (), ("dropout", "Dropout", "not followed")),
    "flattened softmax": (flattened_softmax(), (), ANY),
    "softmax of the default axis": (default_softmax(), (), ANY),
    "over the queries": (over_queries(), ("slot-attention",), ANY),
    "heads and tokens of the keys exchanged": (wrong_permutation(), ("attention",), ANY),
    "hard maximum": (hard_maximum(), (), ()),
    "router": (router(), (), ANY),
    "detection bins": (
        detection_bins(),
        ("attention", "additive-attention", "outlook-attention", "pooling"),
        ANY,
    ),
    "squeeze and excite": (squeeze_excite(), (), ()),
    "classes per time step": (recogniser_classes(), (), ANY),
    "weights cut to a triangle": (masked_afterwards(), ("attention",), ANY),
    "scores cut to a triangle": (masked_to_zero(), ("attention",), ANY),
    "weights scattered over": (scattered_weights(), (), ANY),
    "perceptron": (two_products(), (), ()),
    "additive scores of a state": (recurrent_attention(), ("additive-attention", "pooling"), ANY),
    "scores in 8 bits": (quantised_scores(), ("attention", "additive-attention"), ANY),
    "heads tiled": (repeated_by_tile(), ("attention",), ANY),
    "keys tiled, values repeated": (keys_tiled_values_repeated(), ("attention",), ANY),
}
"""``attention`` where that is exactly what it is, or where it carries a trait."""
