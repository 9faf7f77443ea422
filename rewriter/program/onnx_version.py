"""What the IR version of an ONNX model says of initializers that are inputs, too."""

from __future__ import annotations

import onnx
import onnx_ir as ir

__all__ = ["overridable", "raise_ir_version", "settle_initializers"]

OVERRIDABLE_SINCE = 4
"""IR version from which on an initializer that is an input is its default; before, each is a constant."""


def overridable(proto: onnx.ModelProto) -> frozenset[str]:
    """Return the initializers that are no constants: a caller may give others.

    Examples
    --------
    >>> import numpy as np
    >>> tensor = onnx.numpy_helper.from_array(np.ones(2, np.float32), "w")
    >>> given = onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [2])
    >>> graph = onnx.helper.make_graph([], "g", [given], [], [tensor])
    >>> [sorted(overridable(onnx.helper.make_model(graph, ir_version=v))) for v in (3, 4)]
    [[], ['w']]
    """
    if proto.ir_version < OVERRIDABLE_SINCE:
        return frozenset()
    return frozenset(v.name for v in proto.graph.input) & {t.name for t in proto.graph.initializer}


def raise_ir_version(model: ir.Model, version: int) -> None:
    """Raise the IR version of a model, if it is older: what is a constant stays one."""
    if model.ir_version >= version:
        return
    if model.ir_version < OVERRIDABLE_SINCE <= version:
        for value in [v for v in model.graph.inputs if v.name in model.graph.initializers]:
            model.graph.inputs.remove(value)
    model.ir_version = version


def settle_initializers(model: ir.Model) -> None:
    """Raise the IR version of a model, where some initializer is no input, to one in which it need not be."""
    graph = model.graph
    if not {v.name for v in graph.inputs}.issuperset(graph.initializers):
        raise_ir_version(model, OVERRIDABLE_SINCE)
