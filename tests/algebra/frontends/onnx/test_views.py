"""ONNX operators that move or make entries in primitive form, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, parser

from rewriter.algebra.prims import Constant, Expand, Reshape
from rewriter.program.onnx import OnnxProgram
from tests.algebra.frontends.onnx.case import (
    WIDE,
    A,
    B,
    Case,
    boolean,
    case,
    check_operator,
    ints,
    real,
    scalar,
    static_and_dynamic,
)

INT_MAX = np.iinfo(np.int64).max

VIEWS = [
    case("Transpose", A),
    case("Transpose", A, perm=[1, 0, 2]),
    case("Reshape", A, ints(2, 12), constants=[1]),
    case("Reshape", A, ints(0, -1), constants=[1]),
    case("Reshape", A, ints(-1, 2, 0), constants=[1]),
    case("Reshape", A, ints(0, 0, 2, 2), constants=[1]),
    case("Reshape", A, ints(0, 0, 2, -1), constants=[1]),
    case("Reshape", A, ints(-1), constants=[1]),
    case("Reshape", real(2, 0), ints(0, 7), constants=[1], allowzero=1),
    case("Reshape", real(1), ints(), constants=[1]),
    case("Squeeze", real(1, 3, 1), ints(0), constants=[1]),
    case("Squeeze", real(1, 3, 1), ints(-1, 0), constants=[1]),
    case("Squeeze", real(1, 3, 1), opset=11, axes=[2]),
    case("Unsqueeze", A, ints(0, -1), constants=[1]),
    case("Unsqueeze", A, ints(2), constants=[1]),
    case("Unsqueeze", A, opset=11, axes=[1, 3]),
    case("Flatten", A),
    case("Flatten", A, axis=0),
    case("Flatten", A, axis=-1),
    case("Expand", real(3, 1), ints(2, 1, 4), constants=[1]),
    case("Expand", real(3, 1), ints(1), constants=[1]),
    case("Tile", A, ints(1, 2, 3), constants=[1]),
    case("Tile", A, ints(1, 1, 1), constants=[1]),
    case("Concat", A, B, A, axis=1),
    case("Concat", A, B, axis=-1),
    case("Concat", A, axis=0),
    case("Split", WIDE, outputs=4, opset=13, axis=2),
    case("Split", WIDE, ints(1, 4), constants=[1], outputs=2, axis=1),
    case("Split", WIDE, outputs=2, opset=11, axis=1, split=[2, 3]),
    case("Split", WIDE, outputs=3, opset=18, axis=-1, num_outputs=3),
    case("Slice", WIDE, ints(1), ints(3), constants=[1, 2]),
    case("Slice", WIDE, ints(1, 2), ints(INT_MAX, -1), ints(1, -1), constants=[1, 2, 3]),
    case("Slice", WIDE, ints(-3), ints(INT_MAX), ints(2), constants=[1, 2, 3]),
    case("Slice", WIDE, ints(0), ints(-1), ints(1), constants=[1, 2, 3]),
    case("Slice", WIDE, ints(0), ints(INT_MAX), ints(2), ints(2), constants=[1, 2, 3, 4]),
    case("Slice", WIDE, ints(1), ints(INT_MAX), ints(2), ints(3), constants=[1, 2, 3, 4]),
    case("Slice", WIDE, ints(-1), ints(-INT_MAX), ints(1), ints(-1), constants=[1, 2, 3, 4]),
    case("Slice", WIDE, ints(0), ints(100), ints(1), constants=[1, 2, 3]),
    case("Gather", WIDE, scalar(1), constants=[1], axis=1),
    case("Gather", WIDE, scalar(-1), constants=[1], axis=2),
    case("Gather", WIDE, ints(0), constants=[1], axis=1),
    case("Gather", WIDE, ints(1, 3), constants=[1], axis=1),
    case("Gather", WIDE, ints(4, 2, 0), constants=[1], axis=1),
    case("Gather", WIDE, ints(1, 1), constants=[1], axis=1),
    case("Gather", WIDE, ints(0, 1, 0), constants=[1], axis=1),
    case("Gather", WIDE, ints(-1, 0, -2), constants=[1], axis=1),
    case("Gather", WIDE, np.array([[0, 4], [2, -1]]), constants=[1], axis=1),
    case("Gather", real(9, 4), np.array([[0, 8], [2, 1]]), constants=[0]),
    case("Shape", A),
    case("Shape", A, start=1, end=-1),
    case("Size", A),
    case("ConstantOfShape", ints(2, 3), constants=[0]),
    case(
        "ConstantOfShape",
        ints(2, 3),
        constants=[0],
        value=helper.make_tensor("v", TensorProto.INT64, [1], [7]),
    ),
    case("ConstantOfShape", ints(), constants=[0]),
    case("Range", scalar(1), scalar(9), scalar(3), constants=[0, 1, 2]),
    case("Range", scalar(5), scalar(-2), scalar(-2), constants=[0, 1, 2]),
    case("Range", scalar(0.5), scalar(3.0), scalar(0.75), constants=[0, 1, 2]),
    case("Range", scalar(0.0), scalar(70.0), scalar(1.0), constants=[0, 1, 2]),
    case("Trilu", real(3, 4, 5)),
    case("Trilu", real(3, 4, 5), scalar(1), constants=[1], upper=0),
    case("Trilu", real(4, 4), scalar(-2), constants=[1], upper=1),
    case("Trilu", boolean(4, 4), upper=0),
    case("Pad", A, ints(0, 1, 2, 0, 0, 3), scalar(-1.5), constants=[1, 2]),
    case("Pad", A, ints(0, 1, 0, 0, -1, -2), constants=[1]),
    case("Pad", A, ints(2, 1), None, ints(-1), constants=[1, 3], opset=18),
]


@static_and_dynamic
@pytest.mark.parametrize("op", VIEWS, ids=str)
def test_operator(op: Case, dynamic: bool) -> None:
    check_operator(op, dynamic)


def test_what_is_repeated_and_known_stays_repeated() -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[1] x) => (float[6, 2] z, int64[3] n) <float[2, 2] c = {1, 2, 3, 4}, int64[1] one = {1},
        int64[3] shape = {3, 2, 2}, int64[2] flat = {6, 2}, int64[1] three = {3}> {
            y = Expand(c, shape)
            z = Reshape(y, flat)
            n = Expand(one, three)
        }"""
    )
    prims = OnnxProgram(model, "test").prims()
    assert isinstance(prims["z"].form, Reshape)
    assert isinstance(prims["y"].form, Expand)
    assert isinstance(prims["n"].form, Constant)
