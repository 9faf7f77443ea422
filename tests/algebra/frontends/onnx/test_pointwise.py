"""Pointwise ONNX operators in primitive form, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from tests.algebra.frontends.onnx.case import (
    I64,
    ROW,
    A,
    B,
    Case,
    boolean,
    case,
    check_operator,
    ints,
    positive,
    real,
    scalar,
    static_and_dynamic,
)

POINTWISE = [
    *(case(op, A, B) for op in ("Add", "Sub", "Mul", "Div")),
    *(case(op, A, ROW, constants=[1]) for op in ("Add", "Sub", "Mul", "Div")),
    case("Add", real(3, 1), real(1, 4)),
    case("Div", I64, I64.T[:, :1].T[:, :1] + 1),
    case("Div", I64 - 5, ints(3), constants=[1]),
    case("Mod", I64 - 5, ints(3), constants=[1]),
    *(
        case(op, A)
        for op in "Neg Abs Reciprocal Exp Tanh Sigmoid Relu Erf Sin Cos Floor Ceil Sign Softplus".split()
    ),
    *(case(op, A) for op in ("Identity", "IsNaN", "IsInf")),
    *(case(op, positive(2, 3)) for op in ("Sqrt", "Log")),
    case("Pow", A, scalar(2.0), constants=[1]),
    case("Pow", positive(2, 3), real(2, 3)),
    case("Pow", A, scalar(3), constants=[1]),
    case("Max", A, B, ROW),
    case("Min", A, B, ROW),
    case("Max", A),
    case("Sum", A, B, ROW),
    case("Mean", A, B, ROW),
    case("Where", boolean(2, 3, 1), A, ROW),
    case("Where", boolean(3, 4), A, scalar(-np.inf), constants=[2]),
    *(case(op, boolean(2, 3), boolean(2, 3, seed=1)) for op in ("And", "Or", "Xor")),
    case("Not", boolean(2, 3)),
    *(case(op, I64, I64[:1]) for op in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")),
    case("Cast", A * 5, to=TensorProto.INT64),
    case("Cast", A * 5, to=TensorProto.INT32),
    case("Cast", A, to=TensorProto.BOOL),
    case("Cast", boolean(2, 3), to=TensorProto.FLOAT),
    case("Cast", A, to=TensorProto.FLOAT),
    case("CastLike", A * 5, I64),
    case("Clip", A, scalar(-0.5), scalar(0.25), constants=[1, 2]),
    case("Clip", A, None, scalar(0.25), constants=[2]),
    case("HardSigmoid", A * 9),
    case("HardSigmoid", A * 9, alpha=0.3, beta=0.1),
    case("HardSwish", A * 9),
    case("Dropout", A),
    case("Dropout", A, opset=11, ratio=0.7),
    case("Dropout", A, scalar(0.7), np.array(False), constants=[1, 2], outputs=2),
    case("Dropout", A, scalar(0.0), np.array(True), constants=[1, 2]),
]


@static_and_dynamic
@pytest.mark.parametrize("op", POINTWISE, ids=str)
def test_operator(op: Case, dynamic: bool) -> None:
    check_operator(op, dynamic)
