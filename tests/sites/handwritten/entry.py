"""One graph in the manner of an exporter, and what is to be found in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser

from tests.sites.claims import Expected

__all__ = ["Graph"]

SIZES = {"N": 3, "T": 6, "S": 10}
"""What symbolic dimensions are when a graph is run: batch, queries, keys of another stream."""

BELOW = {"mask": 2, "keep": 2, "ids": 20, "lengths": 6}
"""Integer inputs of these names are below this."""

SMALL = np.float32(0.2)
"""Weights are that much smaller than inputs."""


@dataclass(frozen=True)
class Graph(Expected):
    """A graph in ONNX's text form, and what is expected of it.

    Parameters
    ----------
    name
        ``style/what it does``.
    opset
        Version of the standard operators.
    text
        Inputs whose names begin with a capital are weights: they get numbers, and are no inputs.
    in_nodes
        Weights are held by Constant nodes, not by initializers.
    refused
        What a refusal says, where attention is seen and cannot be lifted.
    """

    name: str
    opset: int
    text: str
    in_nodes: bool = False
    refused: str | None = None

    def model(self) -> onnx.ModelProto:
        """Return the model, with the same weights every time."""
        opsets = f'"" : {self.opset}, "com.microsoft" : 1, "local" : 1'
        model = parser.parse_model(f"<ir_version: 8, opset_import: [{opsets}]>\n{self.text}")
        graph, generator = model.graph, np.random.default_rng(0)
        for value in [v for v in graph.input if v.name[0].isupper()]:
            graph.input.remove(value)
            stored = numpy_helper.from_array(_numbers(value, generator) * SMALL, value.name)
            if self.in_nodes:
                graph.node.insert(0, helper.make_node("Constant", [], [value.name], value=stored))
            else:
                graph.initializer.append(stored)
        return model

    def inputs(self) -> dict[str, np.ndarray]:
        """Return one array per input, the same every time."""
        generator = np.random.default_rng(1)
        return {value.name: _numbers(value, generator) for value in self.model().graph.input}


def _numbers(value: onnx.ValueInfoProto, generator: np.random.Generator) -> np.ndarray:
    kind = value.type.tensor_type
    shape = [SIZES.get(d.dim_param, d.dim_value) for d in kind.shape.dim]
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    numbers = generator.integers(0, BELOW[value.name], shape)
    numbers[..., :1] = 1  # the first key is seen
    return numbers.astype(dtype)
