"""What is known while a torch.export graph is translated, and an operator call as its translation sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rewriter.algebra.frontends.aten_progressions import Progressions
from rewriter.algebra.prims import Prim, constant, iota, squeeze
from rewriter.algebra.sizes import Size
from rewriter.program.graph import Graph, Node

__all__ = ["Call", "Handler", "Result", "Scope", "dtype_name", "is_node"]


class Scope:
    """Everything found so far, by value name.

    Parameters
    ----------
    graph
        What is translated.

    Attributes
    ----------
    prims
        Tensors in primitive form.
    sizes
        Symbolic integers as sizes.
    parts
        What operators with several results gave; None for a result that is a leaf.
    closed
        Values that depend on constants alone: no graph input, no dynamic size, nothing random.
    progressions
        Integer tensors that are arithmetic progressions along every axis.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.prims: dict[str, Prim] = {}
        self.sizes: dict[str, Size] = {}
        self.parts: dict[str, Sequence[Prim | None]] = {}
        self.closed: set[str] = set(graph.constants)
        self.progressions = Progressions()

    def number(self, size: Size, dtype: str = "int64") -> Prim:
        """Return a size as a 0-d tensor."""
        if size.static:
            return constant(np.asarray(int(size), dtype="float64" if "float" in dtype else "int64"), dtype)
        return squeeze(iota(1, start=size, dtype=dtype), 0)


class Call:
    """One node being translated. Arguments are those of the operator's schema, by position or by name.

    Parameters
    ----------
    scope
        What is known.
    node
        The node.
    """

    __slots__ = ("args", "dtype", "kwargs", "name", "node", "op", "scope", "stated")

    def __init__(self, scope: Scope, node: Node) -> None:
        self.scope = scope
        self.node = node
        self.op = node.op
        self.args: Sequence[Any] = node.native.args
        self.kwargs = node.native.kwargs
        self.name = node.outputs[0] if node.outputs else node.name
        value = scope.graph.values.get(self.name)
        self.stated = None if value is None else value.shape
        self.dtype = None if value is None else value.dtype

    @property
    def shape(self) -> tuple[Size, ...]:
        """Shape of the (only) result, as torch computed it."""
        if self.stated is None:
            raise ValueError(f"{self.node.name} ({self.op}) has no shape")
        return self.stated

    def arg(self, at: int, name: str = "", default: Any = None) -> Any:
        """Return an argument by position, or else by name; ``default`` where it is absent."""
        return self.args[at] if at < len(self.args) else self.kwargs.get(name, default)

    def tensor(self, at: int, name: str = "") -> Prim:
        """Return a tensor argument.

        Raises
        ------
        KeyError
            If there is none.
        """
        return self.of(self.arg(at, name))

    def of(self, arg: Any) -> Prim:
        """Return an argument that is a tensor or a symbolic number."""
        if not is_node(arg):
            raise KeyError(f"{self.node.name} ({self.op}) has {arg!r} where a tensor was expected")
        return self.scope.prims[arg.name]

    def optional(self, at: int, name: str = "") -> Prim | None:
        """Return a tensor argument, or None where it is absent."""
        arg = self.arg(at, name)
        return None if arg is None else self.of(arg)

    def tensors(self, at: int, name: str = "") -> list[Prim]:
        """Return an argument that is a list of tensors."""
        return [self.of(arg) for arg in self.arg(at, name)]

    def operand(self, at: int, name: str = "") -> Prim:
        """Return an argument that is a tensor or a number."""
        arg = self.arg(at, name)
        return self.of(arg) if is_node(arg) else self.scalar(arg)

    def scalar(self, number: Any, dtype: str | None = None) -> Prim:
        """Return a Python number as a 0-d tensor; its dtype gives way to the result's."""
        dtype = dtype or self.dtype or ""
        if isinstance(number, bool):
            return constant(np.asarray(number))
        if isinstance(number, float) or "float" in dtype:
            return constant(np.asarray(float(number)), dtype if "float" in dtype else "float64")
        if not isinstance(number, int):
            raise TypeError(f"{self.node.name} ({self.op}) has {number!r} where a number was expected")
        return constant(np.asarray(number, dtype=np.int64), dtype if "int" in dtype else "int64")

    def size(self, arg: Any) -> Size:
        """Return an argument that is an integer, symbolic or not.

        Raises
        ------
        LookupError
            If it is a tensor.
        """
        if not is_node(arg):
            return Size.of(arg)
        if arg.op == "placeholder" and arg.name not in self.scope.sizes:
            self.scope.sizes[arg.name] = Size.parse(str(arg.meta["val"].node.expr))
        return self.scope.sizes[arg.name]

    def axis(self, at: int, rank: int, default: int = 0) -> int:
        """Return an argument that is an axis of a tensor of ``rank``."""
        return int(self.arg(at, "dim", default)) % max(rank, 1)

    def axes(self, at: int, rank: int, name: str = "dim") -> tuple[int, ...]:
        """Return an argument that is one axis or several; none at all means every axis."""
        arg = self.arg(at, name)
        if isinstance(arg, int):
            return (arg % max(rank, 1),)
        return tuple(axis % rank for axis in arg) if arg else tuple(range(rank))


Result = Prim | Sequence[Prim | None] | None
"""Translation of a node: its result, or several, with None for those that are leaves."""

Handler = Callable[[Call], Result]


def is_node(arg: Any) -> bool:
    """Whether an argument is the result of another node."""
    return hasattr(arg, "op")


def dtype_name(dtype: Any) -> str:
    """Return ``"float32"`` for ``torch.float32``."""
    return str(dtype).rpartition(".")[2]
