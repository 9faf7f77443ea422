from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rewriter.errors import InputError
from rewriter.verify import floors
from rewriter.verify.compare import validate
from rewriter.verify.padding import Padding

TOKENS = [("ids", ("batch", "n"), "int64"), ("mask", ("batch", "n"), "int64")]
HIDDEN = [("y", ("batch", "n", 4), "float32")]


@pytest.fixture(autouse=True)
def _weightless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, "perturbed_program", lambda program, seed: program)


def encoder(ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray]:
    return (np.stack([np.sin(ids + k) for k in range(4)], -1).astype(np.float32),)


def other_at_padding(ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray]:
    (y,) = encoder(ids, mask)
    return (np.where(mask[..., None] != 0, y, 7.0).astype(np.float32),)


def wrong_at_one_token(ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray]:
    (y,) = encoder(ids, mask)
    y[0, -1] += np.float32(1.0)
    return (y,)


def padded(length: int, real: int) -> dict[str, np.ndarray]:
    mask = np.zeros((1, length), np.int64)
    mask[:, -real:] = 1
    return {"ids": np.arange(length)[None], "mask": mask}


def test_padding_does_not_count(numpy_program: Any) -> None:
    original = numpy_program(encoder, TOKENS, HIDDEN)
    rewritten = numpy_program(other_at_padding, TOKENS, HIDDEN)
    assert not validate(original, rewritten, data=[padded(9, 2)]).ok
    report = validate(original, rewritten, data=[padded(9, 2)], mask="mask")
    assert report.ok and report.summary["data"][0].distance.elements == 2 * 4  # type: ignore[union-attr]
    assert any("78% of the positions, hidden by mask, do not count in y" in note for note in report.notes)


def test_padding_hides_no_error(numpy_program: Any) -> None:
    """Of 1,000 positions one is real and wrong: on the whole the cosine looks well."""
    original = numpy_program(encoder, TOKENS, HIDDEN)
    rewritten = numpy_program(wrong_at_one_token, TOKENS, HIDDEN)
    data = [padded(1000, 1)]
    fooled = validate(original, rewritten, data, "cos>=0.99")
    assert fooled.ok and any("count; --mask mask leaves them out" in note for note in fooled.notes)
    found = validate(original, rewritten, data, "cos>=0.99", mask=["mask"])
    assert not found.ok
    assert found.summary["data"][0].worst.index[:2] == (0, 999)  # type: ignore[union-attr]


def test_nothing_is_said_of_padding_where_there_is_none(numpy_program: Any) -> None:
    original = numpy_program(encoder, TOKENS, HIDDEN)
    assert validate(original, original, data=[padded(5, 5)]).notes == ()


@pytest.mark.parametrize(
    ("mask_shape", "declared", "output", "shape", "expected"),
    [
        ((2, 3), ("b", "n"), ("b", "n", 4), (2, 3, 4), (2, 3)),
        ((2, 1, 1, 3), ("b", 1, 1, "n"), ("b", "n", 4), (2, 3, 4), (2, 3)),
        ((3,), ("n",), ("n", 4), (3, 4), (3,)),
        # a width that happens to be as long as the text, and one position per text
        ((2, 4), ("b", "n"), ("b", 4), (2, 4), None),
        ((2, 3), ("b", "n"), ("b", 5), (2, 5), None),
        # a name that an exporter made up says nothing
        ((2, 3), ("b", "n"), ("b", "made_up", 4), (2, 3, 4), (2, 3)),
    ],
)
def test_what_a_mask_fits(
    numpy_program: Any,
    mask_shape: tuple[int, ...],
    declared: Any,
    output: Any,
    shape: tuple[int, ...],
    expected: tuple[int, ...] | None,
) -> None:
    program = numpy_program(lambda m: (m,), [("m", declared, "bool")], [("y", output, "float32")])
    keep = Padding(program.graph, ("m",)).counted({"m": np.ones(mask_shape, bool)}, "y", shape)
    assert (None if keep is None else keep.shape) == expected


def test_masks_that_do_not_fit(numpy_program: Any) -> None:
    original = numpy_program(encoder, TOKENS, HIDDEN)
    with pytest.raises(InputError, match="mask 'm' is no input of the model; its inputs are ids, mask"):
        validate(original, original, mask="m")
    pooled = numpy_program(
        lambda i, m: (np.zeros((len(i), 4), np.float32),), TOKENS, [("y", ("batch", 4), "float32")]
    )
    with pytest.raises(InputError, match="no output has its axes first"):
        validate(pooled, pooled, mask="mask")
    floats = numpy_program(lambda x: (x,), [("x", ("n", 4), "float32")], [("y", ("n", 4), "float32")])
    with pytest.raises(InputError, match="mask 'x' is float32; expected booleans"):
        validate(floats, floats, mask="x")
