"""Dimensions of an exported program that its own constants determine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node as FxNode
from torch.fx.node import map_aggregate

__all__ = ["determined"]


def determined(exported: ExportedProgram, bound: Mapping[str, Any]) -> dict[FxNode, int]:
    """Return the whole numbers that are read out of tensors in which no input has a part.

    A model that keeps the sizes of its images in a tensor reads them back as numbers; torch.export makes a
    dimension of each that can be anything.

    Parameters
    ----------
    exported
        The program.
    bound
        What the program itself puts into its placeholders, by name.
    """
    known: dict[FxNode, Any] = {}
    found: dict[FxNode, int] = {}
    for node in exported.graph.nodes:
        if node.target is torch.ops.aten.item.default and isinstance(node.meta.get("val"), torch.SymInt):
            value = _value(node.args[0], bound, known)
            if value is not None:
                found[node] = int(value.item())
    return found


def _value(node: FxNode, bound: Mapping[str, Any], known: dict[FxNode, Any]) -> Any:
    """Return what a node gives, or None where it depends on more than constants."""
    stack = [node]
    while stack:
        at = stack[-1]
        waiting = [n for n in at.all_input_nodes if n not in known]
        if at in known:
            stack.pop()
        elif at.op != "call_function":
            known[stack.pop()] = bound.get(at.name) if at.op == "placeholder" else None
        elif waiting:
            stack += waiting
        else:
            known[stack.pop()] = _computed(at, known)
    return known[node]


def _computed(node: FxNode, known: Mapping[FxNode, Any]) -> Any:
    target = node.target
    random = torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()) or "empty" in str(target)
    if random or any(known[n] is None for n in node.all_input_nodes) or not callable(target):
        return None
    args, kwargs = map_aggregate(
        (node.args, dict(node.kwargs)), lambda arg: known[arg] if isinstance(arg, FxNode) else arg
    )
    try:
        with torch.no_grad():
            return target(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError):
        return None
