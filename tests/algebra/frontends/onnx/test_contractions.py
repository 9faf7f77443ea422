"""ONNX products, reductions and softmax in primitive form, against ONNX Runtime."""

from __future__ import annotations

import pytest

from tests.algebra.frontends.onnx.case import (
    I64,
    WIDE,
    A,
    Case,
    case,
    check_operator,
    ints,
    positive,
    real,
    scalar,
    static_and_dynamic,
)

CONTRACTIONS = [
    case("MatMul", A, real(4, 5)),
    case("MatMul", A, real(4, 5), constants=[1]),
    case("MatMul", real(2, 3, 5, 4), real(2, 3, 4, 7)),
    case("MatMul", real(3, 5, 4), real(2, 3, 4, 7)),
    case("MatMul", real(2, 1, 5, 4), real(3, 4, 7)),
    case("MatMul", real(4), real(4)),
    case("MatMul", real(4), real(2, 4, 3)),
    case("MatMul", A, real(4)),
    case("Gemm", real(3, 4), real(4, 5), real(5)),
    case("Gemm", real(4, 3), real(5, 4), real(3, 1), alpha=0.5, beta=2.0, transA=1, transB=1),
    case("Gemm", real(3, 4), real(4, 5)),
    case("FusedMatMul", real(2, 3, 4), real(2, 5, 4), domain="com.microsoft", alpha=0.25, transB=1),
    case("FusedMatMul", real(2, 4, 3), real(2, 4, 5), domain="com.microsoft", transA=1),
    case("Einsum", real(2, 3, 4), real(2, 5, 4), equation="bid,bjd->bij"),
    case("Einsum", real(2, 3, 4), real(2, 5, 4), equation=" b i d , b j d -> b j i "),
    case("Einsum", real(2, 3, 4), real(4, 5), equation="...d,de->...e"),
    case("Einsum", real(2, 3, 4), real(2, 4, 5), equation="...id,...dj->...ij"),
    case("Einsum", real(3, 4), real(4, 5), equation="ij,jk"),
    case("Einsum", real(2, 3, 4), equation="...ij->...ji"),
    case("Einsum", real(3, 4), real(3), real(4), equation="ij,i,j->j"),
    case("Conv", real(2, 4, 7), real(5, 4, 1), constants=[1]),
    case("Conv", real(2, 4, 3, 5), real(6, 4, 1, 1), real(6), constants=[1, 2]),
]


REDUCTIONS = [
    *(case(op, positive(2, 3, 4), opset=13, axes=[1]) for op in ("ReduceMean", "ReduceMax", "ReduceMin")),
    *(
        case(op, positive(2, 3, 4), ints(0, -1), constants=[1], opset=18, keepdims=0)
        for op in "ReduceSum ReduceMean ReduceMax ReduceMin ReduceLogSumExp ReduceSumSquare ReduceL1 ReduceL2"
        " ReduceLogSum".split()
    ),
    *(case(op, A, opset=18) for op in ("ReduceSum", "ReduceMean", "ReduceMax")),
    case("ReduceSum", A, opset=11, axes=[-1], keepdims=0),
    case("ReduceSum", A, ints(), constants=[1], opset=13, noop_with_empty_axes=1),
    case("ReduceSum", A, ints(), constants=[1], opset=13),
    case("ReduceSum", I64, ints(1), constants=[1], opset=13),
    case("CumSum", A, scalar(1), constants=[1]),
    case("ReduceMean", WIDE, opset=11, axes=[1, 2], keepdims=1),
    case("Softmax", A),
    case("Softmax", A, axis=1),
    case("Softmax", A, opset=11),
    case("Softmax", A, opset=11, axis=-1),
    case("Softmax", A, opset=11, axis=0),
    case("LogSoftmax", A, axis=-2),
    case("LogSoftmax", A, opset=11, axis=1),
]


@static_and_dynamic
@pytest.mark.parametrize("op", [*CONTRACTIONS, *REDUCTIONS], ids=str)
def test_operator(op: Case, dynamic: bool) -> None:
    check_operator(op, dynamic)
