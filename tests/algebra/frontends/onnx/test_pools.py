"""ONNX pools whose windows are whole axes, against ONNX Runtime."""

from __future__ import annotations

import pytest

from rewriter.algebra.prims import Leaf
from rewriter.program.onnx import OnnxProgram
from tests.algebra.frontends.onnx.case import WIDE, Case, case, check_operator, real, static_and_dynamic

IMAGE = real(2, 3, 4, 7)
AXES = (4, 7)

POOLS = [
    case("GlobalAveragePool", WIDE),
    case("GlobalMaxPool", WIDE),
    case("GlobalMaxPool", IMAGE),
    case("AveragePool", IMAGE, fixed=AXES, kernel_shape=[4, 7]),
    case("AveragePool", IMAGE, fixed=AXES, kernel_shape=[1, 7], strides=[1, 7]),
    case("AveragePool", IMAGE, fixed=AXES, kernel_shape=[4, 1], auto_pad="VALID"),
    case("MaxPool", IMAGE, fixed=AXES, kernel_shape=[4, 7], strides=[2, 2]),
    case("MaxPool", WIDE, fixed=(8,), kernel_shape=[8]),
]


@static_and_dynamic
@pytest.mark.parametrize("op", POOLS, ids=str)
def test_a_window_that_is_a_whole_axis_is_a_reduction(op: Case, dynamic: bool) -> None:
    check_operator(op, dynamic)


OPAQUE = [
    case("AveragePool", IMAGE, kernel_shape=[2, 2]),
    case("AveragePool", IMAGE, kernel_shape=[4, 7], pads=[1, 0, 1, 0]),
    case("AveragePool", IMAGE, kernel_shape=[4, 7], auto_pad="SAME_UPPER"),
    case("MaxPool", IMAGE, kernel_shape=[4, 1], strides=[1, 2]),
    case("MaxPool", IMAGE, kernel_shape=[2, 7], dilations=[3, 1]),
    case("MaxPool", IMAGE, kernel_shape=[1, 1]),
    case("MaxPool", IMAGE, kernel_shape=[4, 7], outputs=2),
]


@pytest.mark.parametrize("op", OPAQUE, ids=str)
def test_other_windows_stay_leaves(op: Case) -> None:
    assert isinstance(OnnxProgram(op.model(False)).prims()["y0"].form, Leaf)


def test_a_length_that_is_not_known_is_no_whole_axis() -> None:
    assert isinstance(
        OnnxProgram(case("MaxPool", IMAGE, kernel_shape=[4, 7]).model(True)).prims()["y0"].form, Leaf
    )
