"""A program as a list of steps on named tensors, before it is spelled for a runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import ml_dtypes
import numpy as np

from tests.random_programs.meaning import MEANING

__all__ = ["Content", "Input", "Program", "Step", "Tensor", "as_dtype"]

Content = Literal["numbers", "factor", "keep", "bias"]
"""What an input holds: ordinary numbers, numbers that are never large (products of queries and keys are large
enough), booleans that are True where a key is seen, or an additive mask."""

_KEEPS_DTYPE_OF = {"where": 1, "gather": 0}
_SIZES = frozenset({"shape", "stop", "count"})
"""Attributes that are sizes."""

_BOOLEAN = frozenset({"le", "lt", "ge", "gt", "eq", "and", "or", "not", "isnan"})


def as_dtype(name: str) -> np.dtype:
    """Return the numpy dtype of that name, bfloat16 included."""
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


@dataclass(frozen=True)
class Tensor:
    """A value of the program."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Input:
    """A value that is given, and what it holds."""

    tensor: Tensor
    content: Content


@dataclass(frozen=True)
class Step:
    """One operation; `meaning` says in numpy what it does."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[Tensor, ...]
    attributes: Mapping[str, Any]

    def __str__(self) -> str:
        left = ", ".join(t.name for t in self.outputs)
        right = ", ".join((*self.inputs, *(f"{k}={v}" for k, v in self.attributes.items())))
        return f"{left} = {self.op}({right})"


@dataclass
class Program:
    """Inputs, constants and steps.

    Parameters
    ----------
    dynamic
        Names of the sizes that are not fixed; each number stands nowhere else, nor does a multiple of it.
    """

    inputs: list[Input] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    dynamic: dict[int, str] = field(default_factory=dict)

    def input(self, name: str, shape: tuple[int, ...], dtype: str, content: Content = "numbers") -> Tensor:
        """Add an input."""
        tensor = Tensor(name, shape, dtype)
        self.inputs.append(Input(tensor, content))
        return tensor

    def constant(self, array: np.ndarray, dtype: str) -> Tensor:
        """Add a constant."""
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array).astype(as_dtype(dtype))
        return Tensor(name, self.constants[name].shape, dtype)

    def apply(self, op: str, *inputs: Tensor, **attributes: Any) -> Tensor:
        """Add a step with one result."""
        return self.split(op, *inputs, **attributes)[0]

    def split(self, op: str, *inputs: Tensor, **attributes: Any) -> tuple[Tensor, ...]:
        """Add a step and return its results; shapes are found by doing it with zeros."""
        zeros = [np.zeros(t.shape) for t in inputs]
        if op == "gather":
            zeros[1] = zeros[1].astype(np.int64)
        with np.errstate(all="ignore"):
            found = MEANING[op](*zeros, **attributes)
        arrays = found if isinstance(found, list) else [found]
        dtype = self._dtype(op, inputs, attributes)
        outputs = tuple(
            Tensor(f"t{len(self.steps)}" + "abcdefgh"[k] * (len(arrays) > 1), x.shape, dtype)
            for k, x in enumerate(arrays)
        )
        self.steps.append(Step(op, tuple(t.name for t in inputs), outputs, attributes))
        return outputs

    def _dtype(self, op: str, inputs: tuple[Tensor, ...], attributes: Mapping[str, Any]) -> str:
        if op in _BOOLEAN:
            return "bool"
        if op == "cast":
            return str(attributes["to"])
        if op == "arange":
            return "int64"
        return inputs[_KEEPS_DTYPE_OF.get(op, 0)].dtype

    def prune(self) -> None:
        """Remove what no output needs."""
        needed = set(self.outputs)
        for step in reversed(self.steps):
            if any(t.name in needed for t in step.outputs):
                needed.update(step.inputs)
        self.steps = [s for s in self.steps if any(t.name in needed for t in s.outputs)]
        self.constants = {n: x for n, x in self.constants.items() if n in needed}
        self.inputs = [i for i in self.inputs if i.tensor.name in needed]

    def evaluate(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs, computed in extended precision: float64 is no reference for itself."""
        values: dict[str, np.ndarray] = {}
        for name, array in (*self.constants.items(), *inputs.items()):
            values[name] = array.astype(np.longdouble) if array.dtype.kind not in "bi" else array
        with np.errstate(all="ignore"):
            for step in self.steps:
                found = MEANING[step.op](*(values[n] for n in step.inputs), **step.attributes)
                arrays = found if isinstance(found, list) else [found]
                values.update((t.name, x) for t, x in zip(step.outputs, arrays, strict=True))
        return [values[name] for name in self.outputs]

    def resized(self, sizes: Mapping[int, int]) -> Program:
        """Return the same program where sizes that are not fixed are others."""

        def new(size: int) -> int:
            for old, other in sizes.items():
                while size and size % old == 0:
                    size = size // old * other
            return size

        def renewed(value: Any) -> Any:
            return tuple(map(new, value)) if isinstance(value, tuple) else new(value)

        inputs = [replace(i, tensor=replace(i.tensor, shape=renewed(i.tensor.shape))) for i in self.inputs]
        steps = [
            replace(s, attributes={k: renewed(v) if k in _SIZES else v for k, v in s.attributes.items()})
            for s in self.steps
        ]
        return replace(self, inputs=inputs, steps=steps)

    def __str__(self) -> str:
        lines = [
            f"{i.tensor.name}: {i.tensor.dtype}{list(i.tensor.shape)}  # {i.content}" for i in self.inputs
        ]
        lines += [f"{n}: {x.dtype}{list(x.shape)} = {_short(x)}" for n, x in self.constants.items()]
        lines += [*map(str, self.steps), f"return {', '.join(self.outputs)}"]
        if self.dynamic:
            lines.insert(
                0, "sizes that are not fixed: " + ", ".join(f"{n} ({s})" for n, s in self.dynamic.items())
            )
        return "\n".join(lines)


def _short(array: np.ndarray) -> str:
    return str(array.tolist()) if array.size <= 6 else "…"
