"""An independent count: how many attentions a model computes, seen while it runs eagerly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Count"]

FUSED = "_attention"
PRODUCTS = {"bmm", "mm", "addmm", "baddbmm", "convolution"}
SOFTMAX = {"_softmax", "_safe_softmax"}
COPIES = {
    "_to_copy",
    "_unsafe_view",
    "clone",
    "native_dropout",
    "cat",
    "copy",
    "constant_pad_nd",
    "masked_fill",
    "where",
    "nan_to_num",
}


class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts fused attentions, and softmaxes whose result meets a matrix product.

    A softmax is followed through pointwise operators, views and copies.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fused = 0
        self.softmaxes = 0
        self.met: set[int] = set()
        self._of: dict[int, set[int]] = {}
        self._alive: list[torch.Tensor] = []

    @property
    def total(self) -> int:
        """How many attentions were seen."""
        return self.fused + len(self.met)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and note what it did."""
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        if FUSED in name and "backward" not in name:
            self.fused += 1
            return result
        seen: set[int] = set().union(*(self._of.get(_storage(x), set()) for x in _tensors((args, kwargs))))
        if name in SOFTMAX:
            self._note(result, {self.softmaxes})
            self.softmaxes += 1
        elif name in PRODUCTS:
            self.met |= seen
        elif seen and (name in COPIES or torch.Tag.pointwise in func.tags or func.is_view):
            self._note(result, seen)
        return result

    def _note(self, result: Any, softmaxes: set[int]) -> None:
        for tensor in _tensors(result):
            self._of.setdefault(_storage(tensor), set()).update(softmaxes)
            self._alive.append(tensor)  # a freed storage's address would be used again


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    return (x for x in tree_leaves(tree) if isinstance(x, torch.Tensor) and x.is_floating_point())


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
