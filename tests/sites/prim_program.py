"""A program made of primitive forms alone: for tests of the algebra without any frontend."""

from __future__ import annotations

from collections.abc import Mapping

from rewriter.algebra.prims import Constant, Prim
from rewriter.program.graph import Graph, Node, Value

__all__ = ["PrimProgram", "name_all"]


class PrimProgram:
    """What the recogniser needs of a program, from named outputs in primitive form."""

    format = "prims"
    source = "test"

    def __init__(self, *outputs: Prim) -> None:
        self._prims = name_all(outputs)
        order = list(self._prims.values())
        known = {id(p): p.value or "" for p in order}
        nodes, constants = [], {}
        for prim in order:
            assert prim.value is not None
            if isinstance(prim.form, Constant):
                constants[prim.value] = prim.form.load
            elif prim.inputs:
                inputs = tuple(known[id(x)] for x in prim.inputs)
                nodes.append(Node(prim.value, type(prim.form).__name__, inputs, (prim.value,), None))
        values = {p.value or "": Value(p.value or "", p.shape, p.dtype) for p in order}
        inputs = tuple(p.value or "" for p in order if not p.inputs and not isinstance(p.form, Constant))
        ends = tuple(p.value or "" for p in order[len(order) - len(outputs) :])
        self.graph = Graph(tuple(nodes), values, inputs, ends, constants)

    def prims(self) -> Mapping[str, Prim]:
        """Return every tensor by name."""
        return self._prims


def name_all(outputs: tuple[Prim, ...]) -> dict[str, Prim]:
    """Return a copy of the tensors behind ``outputs`` in which every one has a name, operands first."""
    copies: dict[int, Prim] = {}
    found: dict[str, Prim] = {}

    def copy(prim: Prim) -> Prim:
        if id(prim) not in copies:
            inputs = tuple(copy(x) for x in prim.inputs)
            value = prim.value or f"t{len(copies)}"
            copies[id(prim)] = Prim(prim.form, inputs, prim.shape, prim.dtype, value)
            assert value not in found, f"two tensors are called {value}"
            found[value] = copies[id(prim)]
        return copies[id(prim)]

    for output in outputs:
        copy(output)
    return found
