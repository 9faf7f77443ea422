"""Faults that people make when they rewrite attention: validate finds each, and nothing else."""

from __future__ import annotations

from functools import cache
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

import rewriter
from rewriter.program.program import Program
from rewriter.verify.inputs import generated_cases
from rewriter.verify.lockstep import per_site
from tests.verify.planted.stack import (
    LAYERS,
    SIZE,
    give_weights,
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

FEW = 2
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


# no false alarm

ORDERS: tuple[dict[str, Any], ...] = (
    {},
    {"scale_first": True},
    {"fused_output": True},
    {"spelled": True},
    {"scale_first": True, "fused_output": True},
)
"""The same model, and the same sums in other orders."""

SEEDS = 50


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_another_order_of_sums_is_no_fault(dtype: str) -> None:
    for seed in range(SEEDS):
        plain = stack("onnx", seed=seed, dtype=dtype, count=2)
        other = stack("onnx", seed=seed, dtype=dtype, count=2, **ORDERS[seed % len(ORDERS)])
        report = rewriter.validate(plain, other, seed=seed)
        assert report.ok, f"seed {seed}: {report.verdict}"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_another_order_of_sums_is_no_fault_in_a_traced_model(dtype: str) -> None:
    plain = stack("fx", dtype=dtype, count=1)
    others = [plain, *(stack("fx", dtype=dtype, count=1, **order) for order in ORDERS[2:4])]
    for seed in range(SEEDS):
        other = others[seed % len(others)]
        for program in (plain, other):
            give_weights(program, seed)
        report = rewriter.validate(plain, other, seed=seed)
        assert report.ok, f"seed {seed}: {report.verdict}"


@pytest.mark.parametrize("kind", ["onnx", "fx"])
def test_a_report_is_the_same_every_time(kind: str) -> None:
    models = original(kind), stack(kind, at=1, count=FEW if kind == "fx" else LAYERS, gain=1.001)
    first, again, other = (rewriter.validate(*models, seed=seed).to_json() for seed in (3, 3, 4))
    assert first == again != other


# blame

BLAMED = (
    "the scale is dropped",
    "heads read the wrong group",
    "epsilon is a hundred times larger",
)
"""The others are, too, in the models of `tests.verify.test_faults_in_architectures`."""


@pytest.mark.parametrize("fault", BLAMED)
def test_the_site_at_fault_is_blamed_first(fault: str) -> None:
    model = original("onnx")
    cases = islice(generated_cases(model), 2)
    found = per_site(model, stack("onnx", at=5, **FAULTS[fault]), cases, limit=2, statistics=False)
    assert found.blamed[0] == model.sites[5].id
