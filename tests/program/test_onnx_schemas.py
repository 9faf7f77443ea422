from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from rewriter.errors import InputError
from rewriter.program.onnx_schemas import check_call, check_declared, check_tensor
from tests.program.onnx_models import tensor, value


def node(operator: str, inputs: int = 1, outputs: int = 1, **attributes: Any) -> onnx.NodeProto:
    names = [f"i{k}" for k in range(inputs)], [f"o{k}" for k in range(outputs)]
    made: onnx.NodeProto = helper.make_node(operator, *names, **attributes)
    return made


def twice(name: str) -> onnx.NodeProto:
    made = node("Softmax", axis=1)
    made.attribute.append(helper.make_attribute(name, 2))
    return made


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (node("Softmax", 0), "has 0 operands; expected 1"),
        (node("Softmax", 2), "has 2 operands; expected 1"),
        (node("Softmax", 1, 2), "has 2 results; expected 1"),
        (node("Concat", 2), "lacks the attribute 'axis'"),
        (node("Concat", 2, axis="last"), "'axis' has type STRING; expected INT"),
        (node("Transpose", perm=1), "'perm' has type INT; expected INTS"),
        (node("Clip", 4), "has 4 operands; expected 1 to 3"),
        (twice("axis"), "has an attribute twice"),
    ],
)
def test_a_call_that_breaks_its_schema_is_refused(call: onnx.NodeProto, says: str) -> None:
    with pytest.raises(InputError, match=f"here.*{says}"):
        check_call(call, 17, "here")


@pytest.mark.parametrize(
    "call",
    [
        node("Softmax", axis=1),
        node("Concat", 900, axis=0),
        node("Dropout", 3, 2),
        helper.make_node("Clip", ["x", "", "high", "", ""], ["y"]),  # what is left out does not count
        helper.make_node("Softmax", ["x"], ["y"], not_known=3),
        helper.make_node("FusedMatMul", ["a", "b"], ["y"], domain="com.microsoft"),
        helper.make_node("NotThere", [], []),
    ],
)
def test_other_calls_are_not(call: onnx.NodeProto) -> None:
    check_call(call, 17, "here")
    check_call(call, None, "here")


def described(**entries: str) -> onnx.TensorProto:
    made = tensor("w", np.zeros(4, np.float32))
    for key, text in entries.items():
        made.external_data.add(key=key, value=text)
    return made


def changed(change: Callable[[onnx.TensorProto], None]) -> onnx.TensorProto:
    made = described()
    change(made)
    return made


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (changed(lambda t: setattr(t, "data_type", 99)), "unknown type 99"),
        (changed(lambda t: t.dims.extend([1] * 64)), "65 axes"),
        (described(offset="-1"), "offset of the data of tensor 'w' is '-1'"),
        (described(length="m.onnx"), "length of the data"),
        (described(length="٣"), "length of the data"),
        (described(offset="9223372036854775808"), "expected a number of bytes"),
        (described(code="x"), "'code', which is unknown"),
    ],
)
def test_tensors_that_cannot_be(made: onnx.TensorProto, says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_tensor(made, "m.onnx")


def test_tensors_that_can_be() -> None:
    check_tensor(described(location="w.bin", offset="0", length="16", checksum="ab"), "m.onnx")


@pytest.mark.parametrize(
    ("shape", "says"), [([1] * 65, "65 axes"), ([2**20, 2**21], "elements"), ([2**62, "n"], "elements")]
)
def test_inputs_that_no_memory_holds(shape: list[int | str | None], says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_declared([value("x", shape)], "m.onnx")


def test_inputs_whose_sizes_are_not_known() -> None:
    check_declared([value("x", [-1, "n", None, 0, 2**20]), value("y", None)], "m.onnx")
