"""Tokens of the trained vision transformer stay merged from layer to layer, in its ONNX file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import rewriter
from rewriter.models_zoo.dinov2 import load_onnx, photograph
from rewriter.passes import MergedAttention
from rewriter.verify.metrics import cosine

pytestmark = pytest.mark.xdist_group("dinov2-small")


@pytest.fixture(scope="module")
def original() -> rewriter.Program:
    path = load_onnx().model
    assert isinstance(path, Path)
    return rewriter.load(path)


def test_a_dense_head_gets_all_its_tokens(original: rewriter.Program, tmp_path: Path) -> None:
    apply = MergedAttention(r=24, through=True, select="0-3")
    merged = apply(original)
    assert apply.report is not None and [a.reason for a in apply.report.sites] == [None] * 4
    assert [int(s.queries) for s in merged.sites] == [257, 233, 209, 185, *[161] * 8]
    image = photograph()
    before, after = np.asarray(original.run(image)[0]), np.asarray(merged.run(image)[0])
    assert before.shape == after.shape == (1, 1, 224, 224)
    assert cosine(before, after) >= 0.999
    merged.save(tmp_path / "merged.onnx")
    np.testing.assert_array_equal(np.asarray(rewriter.load(tmp_path / "merged.onnx").run(image)[0]), after)
    batch = np.concatenate([image, image[..., ::-1]])
    np.testing.assert_allclose(np.asarray(merged.run(batch)[0])[:1], after, rtol=1e-3, atol=1e-4)


def test_most_of_the_products_of_later_layers_are_saved(original: rewriter.Program) -> None:
    def scores(program: rewriter.Program) -> int:
        return sum(int(s.queries) * int(s.keys) for s in program.sites)

    merged = MergedAttention(r=40, through=True, select="0-2", verify=False)(original)
    assert scores(merged) < 0.42 * scores(original)
