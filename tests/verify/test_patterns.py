from __future__ import annotations

import numpy as np
import pytest

from rewriter.verify.patterns import BOOLEAN, additive, keep_mask

SHAPES = [(3, 7), (2, 1, 5, 9), (1, 1), (4,), ()]


def made(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return keep_mask(name, np.random.default_rng(0), shape, np.dtype(bool))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", BOOLEAN)
def test_shape_and_determinism(name: str, shape: tuple[int, ...]) -> None:
    assert made(name, shape).shape == shape
    np.testing.assert_array_equal(made(name, shape), made(name, shape))


@pytest.mark.parametrize("shape", SHAPES[:-1], ids=str)
def test_what_the_names_promise(shape: tuple[int, ...]) -> None:
    assert made("random", shape).any(-1).all()
    assert made("all true", shape).all()
    left, right = made("left padding", shape), made("right padding", shape)
    assert (np.diff(left.astype(int), axis=-1) >= 0).all() and left.any(-1).all()
    assert (np.diff(right.astype(int), axis=-1) <= 0).all() and right.any(-1).all()
    assert (~made("a row all false", shape)).all(-1).sum() == 1
    assert made("a row all true", shape).all(-1).any()
    if shape[-1] > 1:
        assert not left.all() and not right.all()


def test_padding_is_the_same_for_every_head_and_query() -> None:
    left = made("left padding", (2, 3, 5, 9))
    assert (left == left[:, :1, :1]).all()


def test_additive_masks() -> None:
    mask = additive("a row all false", np.random.default_rng(0), (3, 7), np.dtype(np.float32))
    assert set(np.unique(mask)) <= {0.0, -np.inf} and np.isneginf(mask[0]).all()
    assert (
        additive("a row all false", np.random.default_rng(0), (3, 7), np.dtype(np.float32), -1e4).min()
        == -1e4
    )
