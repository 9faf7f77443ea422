"""Results that depend on constants alone, computed by torch itself when their numbers are needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from rewriter.algebra.frontends.aten_scope import is_node
from rewriter.program.graph import Graph

__all__ = ["deterministic", "lazy"]


def deterministic(native: Any) -> bool:
    """Whether a `torch.fx.Node` gives the same result whenever it is run on the same operands."""
    if "empty" in str(native.target):
        return False
    return not any("nondeterministic" in str(tag) for tag in getattr(native.target, "tags", ()))


def lazy(graph: Graph, native: Any) -> Callable[[], np.ndarray]:
    """Return a function that computes the result of a node all of whose operands are closed.

    The numbers are those of the real-valued function: everything floating is computed in float64.

    Parameters
    ----------
    graph
        Its constants are what the computation starts from.
    native
        The `torch.fx.Node`.
    """
    return partial(_load, graph, native)


def _load(graph: Graph, native: Any) -> np.ndarray:
    try:
        found = _compute(graph, native, wide=True)
    except RuntimeError:  # an operator that makes float32 by default, or has no float64 version
        found = _compute(graph, native, wide=False)
    return _array(found)


def _compute(graph: Graph, native: Any, wide: bool) -> Any:
    import torch
    from torch.fx.node import map_aggregate

    found: dict[Any, Any] = {}

    def argument(arg: Any) -> Any:
        if is_node(arg) and arg in found:
            return found[arg]
        if isinstance(arg, torch.device):
            return torch.device("cpu")
        return torch.float64 if wide and isinstance(arg, torch.dtype) and arg.is_floating_point else arg

    stack = [native]
    with torch.no_grad():
        while stack:
            at = stack[-1]
            waiting = [node for node in at.all_input_nodes if node not in found]
            if at in found:
                stack.pop()
            elif at.op != "call_function":
                tensor = _tensor(graph.constants[at.name]())
                found[stack.pop()] = tensor.double() if wide and tensor.is_floating_point() else tensor
            elif waiting:
                stack.extend(waiting)
            else:
                args, kwargs = map_aggregate((at.args, dict(at.kwargs)), argument)
                found[stack.pop()] = at.target(*args, **kwargs)
    return found[native]


def _tensor(array: np.ndarray) -> Any:
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16)
    if array.dtype.name.startswith("float8"):
        return torch.from_numpy(array.astype(np.float32))
    return torch.from_numpy(np.array(array))


def _array(tensor: Any) -> np.ndarray:
    if tensor.is_floating_point() and tensor.dtype.itemsize < 4:
        tensor = tensor.float()
    return np.asarray(tensor.detach().cpu().numpy())
