"""ONNX's own tests of Attention, fused and expanded into operators: each is raised, and equals its oracle."""

from __future__ import annotations

import warnings
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx.backend.test.case.node import collect_testcases

import rewriter
from rewriter.algebra.evaluate import evaluate
from rewriter.errors import InputError
from rewriter.program.onnx import OnnxProgram
from rewriter.sites.check import formula_value

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    # all of them: a first call for one operator would leave other tests of the process with that one only
    CASES: dict[str, Any] = {
        t.name: t for t in collect_testcases(None) if t.name.startswith("test_attention_")
    }

HALF = (np.float16, ml_dtypes.bfloat16)

WITHOUT_KERNEL = {
    "test_attention_3d_causal_bf16_expanded",
    "test_attention_4d_attn_mask_causal_bf16_expanded",
    "test_attention_4d_causal_bf16_expanded",
    "test_attention_4d_causal_padded_kv_bf16_expanded",
    "test_attention_4d_padded_kv_bf16_expanded",
}
"""Graphs in bfloat16 with operators for which ONNX Runtime has no kernel on a CPU."""


def check_oracle(case: Any, found: list[np.ndarray]) -> None:
    ((inputs, outputs),) = case.data_sets
    tolerance = 2e-2 if any(np.asarray(x).dtype in HALF for x in inputs) else 1e-5
    for array, wanted in zip(found, outputs, strict=True):
        exact = np.asarray(wanted).astype(np.float64)
        np.testing.assert_allclose(np.asarray(array).astype(np.float64), exact, tolerance, tolerance)


def test_there_are_as_many_twins() -> None:
    expanded = {name for name in CASES if name.endswith("_expanded")}
    assert len(expanded) == 93
    assert {f"{name}_expanded" for name in CASES.keys() - expanded} == expanded


@pytest.mark.parametrize("name", CASES)
def test_raised(name: str) -> None:
    """The site's formula, in place of the graph's own computation, gives what the test wants."""
    program = OnnxProgram(CASES[name].model, name)
    (site,) = program.sites
    assert site.kind == "attention"
    assert set(site.traits) <= {"softcap"}
    assert not [refusal for refusal in program.refused if refusal.missed]
    prims, ((inputs, _),) = program.prims(), CASES[name].data_sets
    values = dict(zip(program.inputs, inputs, strict=True))
    operands = dict(zip(site.inputs, evaluate([prims[n] for n in site.inputs], values), strict=True))
    values[site.output] = formula_value(program, site, operands)
    check_oracle(CASES[name], evaluate([prims[n] for n in program.outputs], values))


@pytest.mark.parametrize("name", [name for name in CASES if name.endswith("_expanded")])
def test_rewritten(name: str) -> None:
    program, ((inputs, _),) = OnnxProgram(CASES[name].model, name), CASES[name].data_sets
    try:
        program.run(*inputs)
    except InputError as error:
        if name not in WITHOUT_KERNEL:
            raise
        pytest.skip(str(error))
    softmax = rewriter.passes.SoftmaxAttention()
    rewritten = softmax(program)
    assert softmax.report is not None
    assert [site.reason for site in softmax.report.sites] == [None]
    check_oracle(CASES[name], list(rewritten.run(*inputs)))
