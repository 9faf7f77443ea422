"""One ONNX node as a model, and the check of its form against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

from rewriter.algebra.evaluate import bind, evaluate
from rewriter.algebra.prims import Leaf, Prim
from rewriter.program.onnx import OnnxProgram

Array = np.ndarray[Any, Any]


def real(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> Array:
    return np.abs(real(*shape)) + np.float32(0.1)


def boolean(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random(shape) < 0.5


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


def scalar(value: float) -> Array:
    return np.array(value, dtype=np.int64 if isinstance(value, int) else np.float32)


@dataclass(frozen=True)
class Case:
    """One node: inputs that are given at run time, constants (by position), attributes."""

    op: str
    inputs: tuple[Array | None, ...]
    constants: tuple[int, ...] = ()
    opset: int = 17
    outputs: int = 1
    domain: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)
    fixed: frozenset[int] = frozenset()

    def __str__(self) -> str:
        shapes = ",".join("-" if x is None else "x".join(map(str, x.shape)) or "()" for x in self.inputs)
        attributes = ",".join(f"{k}={v}" for k, v in self.attributes.items())
        return f"{self.op}-{self.opset}({shapes}){attributes}"

    def model(self, dynamic: bool) -> onnx.ModelProto:
        names = ["" if x is None else f"x{k}" for k, x in enumerate(self.inputs)]
        given, constants = [], []
        for k, x in enumerate(self.inputs):
            if x is None:
                continue
            if k in self.constants:
                constants.append(numpy_helper.from_array(x, names[k]))
                continue
            shape = [f"n{n}" if dynamic and n > 1 and n not in self.fixed else n for n in x.shape]
            kind = helper.np_dtype_to_tensor_dtype(x.dtype)
            given.append(helper.make_tensor_value_info(names[k], kind, shape))
        outputs = [f"y{k}" for k in range(self.outputs)]
        node = helper.make_node(self.op, names, outputs, domain=self.domain, **self.attributes)
        results = [onnx.ValueInfoProto(name=name) for name in outputs]
        graph = helper.make_graph([node], "g", given, results, constants)
        imports = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=8 if self.opset < 21 else 10)

    def values(self) -> dict[str, Array]:
        return {f"x{k}": x for k, x in enumerate(self.inputs) if x is not None and k not in self.constants}


def case(
    op: str,
    *inputs: Array | None,
    constants: Sequence[int] = (),
    opset: int = 17,
    outputs: int = 1,
    domain: str = "",
    fixed: Sequence[int] = (),
    **attributes: Any,
) -> Case:
    return Case(op, inputs, tuple(constants), opset, outputs, domain, attributes, frozenset(fixed))


A, B = real(2, 3, 4), real(2, 3, 4, seed=1)
ROW = real(4, seed=2)
I64 = np.random.default_rng(0).integers(1, 9, (2, 3))
WIDE = real(2, 5, 8)


def check(
    program: OnnxProgram, values: dict[str, Array], expected: Sequence[Array], tolerance: float = 1e-5
) -> dict[str, Prim]:
    """Evaluate the outputs and compare values, dtypes and stated shapes."""
    forms = dict(program.prims())
    outputs = [forms[name] for name in program.outputs]
    sizes = bind([forms[name] for name in program.inputs], values)
    got = evaluate(outputs, values, sizes)
    for name, form, array, want in zip(program.outputs, outputs, got, expected, strict=True):
        assert form.value == name
        assert array.shape == want.shape
        assert tuple(int(n.substitute(sizes)) if n.symbols <= sizes.keys() else want.shape[k]
                     for k, n in enumerate(form.shape)) == want.shape  # fmt: skip
        assert form.dtype in (None, want.dtype.name), (form, want.dtype)
        exact = np.asarray(want).astype(np.float64) if want.dtype.kind not in "biu" else want
        np.testing.assert_allclose(array, exact, rtol=tolerance, atol=tolerance)
    return forms


static_and_dynamic = pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])


def check_operator(op: Case, dynamic: bool) -> None:
    """Check that an operator has forms without leaves, of its own values."""
    program = OnnxProgram(op.model(dynamic))
    forms = check(program, op.values(), program.run(**op.values()))
    assert not any(isinstance(forms[f"y{k}"].form, Leaf) for k in range(op.outputs))


def graph(text: str, opset: int = 17) -> OnnxProgram:
    """Return a program of a graph in ONNX's text form."""
    return OnnxProgram(parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}'))


def reached(form: Prim) -> set[Prim]:
    """Return a form and all that it is made of."""
    seen, stack = {form}, [form]
    while stack:
        for operand in stack.pop().inputs:
            if operand not in seen:
                seen.add(operand)
                stack.append(operand)
    return seen
