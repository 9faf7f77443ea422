"""Faults that people make when they rewrite attention: validate finds each, and nothing else."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import rewriter
from rewriter.program.program import Program
from tests.verify.planted.stack import (
    LAYERS,
    SIZE,
    one_ahead,
    stack,
    window,
    with_corner,
    without_last,
)

torch.set_num_threads(1)

FAULTS: dict[str, dict[str, Any]] = {
    "two features of the keys are swapped": {"features": (1, 0, *range(2, SIZE))},
    "the scale is dropped": {"scale": SIZE**0.5},
    "the scale is applied twice": {"scale": SIZE**-0.5},
    "a corner of the mask is open": {"visible": with_corner},
    "a query sees one key ahead": {"visible": one_ahead},
    "the last key is hidden": {"visible": without_last},
    "the window is one too short": {"visible": window(32)},
    "keys come one late": {"shifted": True},
    "the result is off by 1e-3": {"gain": 1.001},
    "the result is off by 1e-4": {"gain": 1.0001},
    "two heads are swapped": {"heads": (1, 0, 2, 3)},
    "heads read the wrong group": {"groups": (0, 1, 0, 1)},
    "epsilon is a hundred times larger": {"epsilon": 1e-3},
    "the output projection is transposed": {"transposed": True},
    "bfloat16 where float32 was": {"rounded": "bfloat16"},
    "float16 overflows": {"rounded": "float16", "magnified": 2.0**14},
    "masked scores are not low enough": {"fill": -4.0},
    "masked scores are infinite": {"fill": -np.inf},
    "padding is on the wrong side": {"padded": 0},
    "softmax is over the queries": {"axis": -2},
    "values are the keys": {"values": "k"},
    "wrong in long sequences only": {"gain": 1.01, "above": 128},
}

FEW = 3
"""Layers of a model that is traced, which takes long."""

TRACED = {
    "dropout is on": {"dropped": 0.1},  # ONNX Runtime never drops anything
    **{
        fault: FAULTS[fault]
        for fault in (
            "a corner of the mask is open",
            "the result is off by 1e-4",
            "heads read the wrong group",
            "bfloat16 where float32 was",
            "wrong in long sequences only",
        )
    },
}
"""Faults that are planted in traced models, too."""


@cache
def original(kind: str, **every: Any) -> Program:
    return stack(kind, count=FEW if kind == "fx" else LAYERS, **every)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_one_layer_of_twelve_is_found(fault: str) -> None:
    report = rewriter.validate(original("onnx"), stack("onnx", at=5, **FAULTS[fault]))
    assert not report.ok, report.verdict


@pytest.mark.parametrize("fault", TRACED)
def test_a_fault_in_a_traced_model_is_found(fault: str) -> None:
    report = rewriter.validate(original("fx"), stack("fx", at=1, count=FEW, **TRACED[fault]))
    assert not report.ok, report.verdict


@pytest.mark.parametrize("epsilon", [1e-6, 1e-12, 1.1e-5])
def test_another_epsilon_is_found(epsilon: float) -> None:
    report = rewriter.validate(original("onnx"), stack("onnx", epsilon=epsilon))
    assert not report.ok, report.verdict


@pytest.mark.parametrize("place", [0, LAYERS - 1])
def test_a_small_fault_at_the_ends_is_found(place: int) -> None:
    assert not rewriter.validate(original("onnx"), stack("onnx", at=place, gain=1.0003)).ok


def test_a_window_of_other_width_is_found() -> None:
    forty, more = window(40), window(41)
    report = rewriter.validate(stack("onnx", visible=forty), stack("onnx", visible=more))
    assert not report.ok, report.verdict
