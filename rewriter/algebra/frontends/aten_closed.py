"""Results that depend on constants alone, computed by torch itself when their numbers are needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from rewriter.algebra.frontends.aten_scope import is_node
from rewriter.program.graph import Graph

__all__ = ["deterministic", "lazy"]

_RANDOM = (
    "rand",
    "dropout",
    "bernoulli",
    "multinomial",
    "normal",
    "uniform",
    "exponential",
    "geometric",
    "empty",
)


def deterministic(op: str) -> bool:
    """Whether an operator gives the same result for the same operands."""
    name = op.rpartition("::")[2]
    # layer_norm and friends are named after what they do to a distribution
    return name.startswith(("native_", "batch_norm")) or not any(word in name for word in _RANDOM)


def lazy(graph: Graph, native: Any) -> Callable[[], np.ndarray]:
    """Return a function that computes the result of a node all of whose operands are closed.

    Parameters
    ----------
    graph
        Its constants are what the computation starts from.
    native
        The `torch.fx.Node`.
    """
    return partial(_compute, graph, native)


def _compute(graph: Graph, native: Any) -> np.ndarray:
    import torch
    from torch.fx.node import map_arg

    found: dict[Any, Any] = {}
    stack = [native]
    with torch.no_grad():
        while stack:
            at = stack[-1]
            waiting = [node for node in at.all_input_nodes if node not in found]
            if at in found:
                stack.pop()
            elif not is_node(at) or at.op != "call_function":
                found[stack.pop()] = _tensor(graph.constants[at.name]())
            elif waiting:
                stack.extend(waiting)
            else:
                args = map_arg(at.args, found.__getitem__)
                kwargs = {
                    key: _local(key, value) for key, value in map_arg(at.kwargs, found.__getitem__).items()
                }
                found[stack.pop()] = at.target(*args, **kwargs)
    return _array(found[native])


def _local(key: str, value: Any) -> Any:
    return "cpu" if key == "device" and value is not None else value


def _tensor(array: np.ndarray) -> Any:
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    if array.dtype.name.startswith("float8"):
        return torch.from_numpy(array.view(np.uint8)).view(getattr(torch, array.dtype.name))
    return torch.from_numpy(np.require(array, requirements="W"))


def _array(tensor: Any) -> np.ndarray:
    import torch

    if tensor.dtype in (torch.bfloat16, torch.float16) or (
        tensor.dtype.itemsize < 2 and tensor.is_floating_point()
    ):
        tensor = tensor.float()
    return np.asarray(tensor.detach().contiguous().numpy())
