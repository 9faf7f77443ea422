"""Writing a random program with tensors whose axes have names, so that a layout is one more decision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.random_programs.draws import Draws
from tests.random_programs.steps import Content, Program, Tensor

__all__ = ["Named", "Writer"]


@dataclass(frozen=True)
class Named:
    """A tensor and the name of each of its axes."""

    tensor: Tensor
    axes: tuple[str, ...]

    def size(self, axis: str) -> int:
        """Return the size of an axis."""
        return self.tensor.shape[self.axes.index(axis)]

    def at(self, axis: str) -> int:
        """Return the position of an axis."""
        return self.axes.index(axis)


class Writer:
    """A program in the making.

    Parameters
    ----------
    draws
        Where decisions come from.
    dtype
        Of all that is computed.
    """

    def __init__(self, draws: Draws, dtype: str) -> None:
        self.draws, self.dtype, self.program = draws, dtype, Program()
        self.neighbours: list[tuple[str, ...]] = []
        """Axes of the operands that are one axis of an input."""

    def apply(self, op: str, x: Named, *others: Tensor, **attributes: Any) -> Named:
        """Apply a step that keeps the axes."""
        return Named(self.program.apply(op, x.tensor, *others, **attributes), x.axes)

    def number(self, value: float, dtype: str | None = None) -> Tensor:
        """Return a constant scalar, or a constant of one entry."""
        return self.program.constant(np.array(value), dtype or self.dtype)

    def weight(self, name: str, shape: Sequence[int], spread: float = 1.0) -> Tensor:
        """Return a constant of normal numbers."""
        rng = np.random.default_rng([self.draws.seed, *name.encode()])
        return self.program.constant(rng.normal(size=tuple(shape)) * spread, self.dtype)

    def input(self, name: str, shape: Sequence[int], content: Content = "numbers", dtype: str = "") -> Tensor:
        """Return an input; parts of a program that ask for the same one share it."""
        for given in self.program.inputs:
            if given.tensor.name == name and given.tensor.shape == tuple(shape):
                return given.tensor
        if any(given.tensor.name == name for given in self.program.inputs):
            name = f"{name}_{len(self.program.inputs)}"
        return self.program.input(name, tuple(shape), dtype or self.dtype, content)

    # views

    def permuted(self, x: Named, axes: Sequence[str]) -> Named:
        """Return the same tensor with its axes in another order."""
        axes = tuple(axes)
        if axes == x.axes:
            return x
        order = tuple(x.axes.index(a) for a in axes)
        return Named(self.program.apply("transpose", x.tensor, order=order), axes)

    def aligned(self, x: Named, axes: Sequence[str]) -> Named:
        """Return a tensor with these axes; those that it does not have are of size 1."""
        x = self.permuted(x, [a for a in axes if a in x.axes])
        missing = tuple(k for k, a in enumerate(axes) if a not in x.axes)
        if not missing:
            return x
        return Named(self.program.apply("unsqueeze", x.tensor, axes=missing), tuple(axes))

    def expanded(self, x: Named, sizes: dict[str, int]) -> Named:
        """Return a tensor whose axes of size 1 are repeated without a copy."""
        shape = tuple(sizes.get(a, n) for a, n in zip(x.axes, x.tensor.shape, strict=True))
        if shape == x.tensor.shape:
            return x
        return Named(self.program.apply("expand", x.tensor, shape=shape), x.axes)

    def merged(self, x: Named, groups: Sequence[Sequence[str]], names: Sequence[str]) -> Named:
        """Return a tensor whose axes are products of neighbouring axes of ``x``."""
        x = self.permuted(x, [a for g in groups for a in g])
        shape = tuple(math.prod(x.size(a) for a in g) for g in groups)
        if shape == x.tensor.shape:
            return Named(x.tensor, tuple(names))
        return Named(self.program.apply("reshape", x.tensor, shape=shape), tuple(names))

    def divided(self, x: Named, axis: str, parts: Sequence[tuple[str, int]]) -> Named:
        """Return a tensor with one axis divided in several, slow to fast."""
        at = x.at(axis)
        sizes = [n for _, n in parts]
        shape = (*x.tensor.shape[:at], *sizes, *x.tensor.shape[at + 1 :])
        axes = (*x.axes[:at], *(a for a, _ in parts), *x.axes[at + 1 :])
        return Named(self.program.apply("reshape", x.tensor, shape=shape), axes)

    def sliced(self, x: Named, axis: str, start: int, stop: int) -> Named:
        """Return a range of an axis."""
        return self.apply("slice", x, axis=x.at(axis), start=start, stop=stop)

    def one_of(self, x: Named, axis: str, at: int, how: str = "slice") -> Named:
        """Return one entry of an axis, which is dropped."""
        axes = tuple(a for a in x.axes if a != axis)
        if how == "gather":
            index = self.program.constant(np.array(at), "int64")
            return Named(self.program.apply("gather", x.tensor, index, axis=x.at(axis)), axes)
        part = self.sliced(x, axis, at, at + 1)
        return Named(self.program.apply("squeeze", part.tensor, axes=(x.at(axis),)), axes)

    def renamed(self, x: Named, names: dict[str, str]) -> Named:
        """Return the same tensor with other names of its axes."""
        return Named(x.tensor, tuple(names.get(a, a) for a in x.axes))

    # arithmetic

    def combined(self, op: str, x: Named, y: Named, name: str) -> Named:
        """Apply an operation of two tensors; ``y`` has no axis that ``x`` has not."""
        other = self.aligned(y, x.axes)
        if op in ("add", "mul", "or", "and") and self.draws.maybe(f"{name}_swapped", 0.3):
            return Named(self.program.apply(op, other.tensor, x.tensor), x.axes)
        return Named(self.program.apply(op, x.tensor, other.tensor), x.axes)

    def scaled(self, x: Named, factor: float, name: str) -> Named:
        """Multiply by a number, however that is spelled."""
        how = self.draws.pick(
            f"{name}_by", {"mul": 4, "div": 4, "mul left": 1, "twice": 1, "root": 1, "inverse": 1}
        )
        if how == "div":
            return self.apply("div", x, self.number(1 / factor))
        if how == "mul left":
            return Named(self.program.apply("mul", self.number(factor), x.tensor), x.axes)
        if how == "twice":
            return self.apply("mul", self.apply("mul", x, self.number(factor * 2)), self.number(0.5))
        if how == "root" and factor > 0:
            root = self.program.apply("sqrt", self.number(1 / factor**2))
            return self.apply("div", x, root)
        if how == "inverse":
            return self.apply("mul", x, self.program.apply("reciprocal", self.number(1 / factor)))
        return self.apply("mul", x, self.number(factor))
