"""Rules on chains of a thousand operators, and on values that are read twice at each of many steps."""

from __future__ import annotations

import time
from collections.abc import Callable

import onnx
import pytest
from onnx import TensorProto, helper

from rewriter.passes import parse_rules
from rewriter.program.onnx import OnnxProgram
from rewriter.rules import fuse

STEPS = 1100
VIEWS = 11_000
SECONDS = 60.0

CHAINS: dict[str, Callable[[str], tuple[str, list[str]]]] = {
    "products": lambda at: ("Mul", [at, "z"]),
    "squares": lambda at: ("Mul", [at, at]),
    "sums": lambda at: ("Add", [at, "z"]),
    "doubles": lambda at: ("Add", [at, at]),
}


@pytest.mark.parametrize("name", CHAINS)
def test_long_chains(name: str) -> None:
    """Neither too deep for Python nor twice the work at each step."""
    _is_quick(CHAINS[name], STEPS)


def test_long_chains_of_views() -> None:
    """No rule looks through all of them from each of them."""
    _is_quick(lambda at: ("Transpose", [at]), VIEWS)


def _is_quick(step: Callable[[str], tuple[str, list[str]]], steps: int) -> None:
    nodes, at = [], "x"
    for k in range(steps):
        operator, read = step(at)
        nodes.append(helper.make_node(operator, read, [f"h{k}"]))
        at = f"h{k}"
    nodes.append(helper.make_node("Add", [at, "x"], ["y"]))
    x, z, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in "xzy")
    model = helper.make_model(
        helper.make_graph(nodes, "chain", [x, z], [y]), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 8
    onnx.checker.check_model(model)
    program = OnnxProgram(model)
    start = time.process_time()
    made, record = fuse(program, parse_rules("exact") or (), verify=False)
    assert time.process_time() - start < SECONDS
    assert made is program and not record.committed
