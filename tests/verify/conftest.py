"""A program that is a numpy function: enough to test what runs whole models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from rewriter.algebra.prims import Prim, gather, leaf
from rewriter.algebra.sizes import Size
from rewriter.program.graph import Graph, Value
from rewriter.program.program import Arrays, Build, Program, Replacement


@dataclass
class NumpyProgram(Program):
    """``function(*inputs) -> tuple``; inputs and outputs are ``(name, shape, dtype)``."""

    function: Callable[..., Sequence[np.ndarray]]
    inputs: Sequence[tuple[str, Sequence[int | str], str]]
    outputs: Sequence[tuple[str, Sequence[int | str], str]]
    tables: Mapping[str, int] = field(default_factory=dict)
    written: Mapping[str, str] = field(default_factory=dict)
    source: str = "numpy"
    format: str = "numpy"

    @property
    def graph(self) -> Graph:
        values = {n: Value(n, tuple(map(Size.of, s)), d) for n, s, d in (*self.inputs, *self.outputs)}
        return Graph((), values, tuple(n for n, _, _ in self.inputs), tuple(n for n, _, _ in self.outputs))

    def prims(self) -> Mapping[str, Prim]:
        known = {n: leaf("input", s, d, n) for n, s, d in self.inputs}
        looked_up = {
            f"{n} looked up": gather(leaf("weight", (rows, 4), "float32", None), known[n], 0)
            for n, rows in self.tables.items()
        }
        return {**known, **looked_up}

    def run(self, *inputs: Any, **named: Any) -> tuple[Any, ...]:
        return tuple(self.function(*inputs, **named))

    def extract(self, inputs: Sequence[str], outputs: Sequence[str]) -> Callable[[Arrays], list[np.ndarray]]:
        raise NotImplementedError

    def emit(
        self, inputs: Sequence[str], build: Build, sample: Arrays, *, target: str = "native"
    ) -> Callable[[Arrays], list[np.ndarray]]:
        raise NotImplementedError

    def replace(self, replacements: Sequence[Replacement], *, target: str = "native") -> Program:
        raise NotImplementedError

    def save(self, path: Any) -> None:
        raise NotImplementedError

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.written


@pytest.fixture
def numpy_program() -> type[NumpyProgram]:
    """Return the class, as test files do not import each other."""
    return NumpyProgram
