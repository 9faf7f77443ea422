from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rewriter.errors import InputError
from rewriter.verify.inputs import generated_cases, index_bounds

IDS = ("ids", ("batch", "n"), "int64")
MASK = ("mask", ("batch", "n"), "int64")
POSITIONS = ("position_ids", ("batch", "n"), "int64")
PIXELS = ("pixels", ("batch", 3, "height", "width"), "float32")


def test_ids_stay_in_the_table_and_masks_are_ones(numpy_program: Any) -> None:
    program = numpy_program(None, [IDS, MASK, POSITIONS], [], tables={"ids": 11})
    assert index_bounds(program) == {"ids": 11}
    cases = list(generated_cases(program))
    assert [c.inputs["ids"].shape for c in cases if c.group == "random"] == [(2, 7), (1, 160), (1, 1)]
    for case in cases:
        assert case.inputs["ids"].dtype == np.int64
        assert case.inputs["ids"].min() >= 0 and case.inputs["ids"].max() < 11
        np.testing.assert_array_equal(case.inputs["position_ids"][0], np.arange(case.inputs["ids"].shape[1]))
        if case.group == "random":
            assert case.inputs["mask"].all()
    adversarial = {c.name.split(",")[0]: c.inputs["mask"] for c in cases if c.group == "adversarial"}
    assert set(adversarial) == {"left padding", "right padding", "a row all false"}
    assert not adversarial["left padding"][0, 0] and adversarial["left padding"][0, -1]
    assert not adversarial["a row all false"][0].any()


def test_sides_of_images_are_multiples_of_patches(numpy_program: Any) -> None:
    cases = list(generated_cases(numpy_program(None, [PIXELS], [])))
    assert cases[0].inputs["pixels"].shape == (2, 3, 112, 112)
    assert cases[-1].inputs["pixels"].shape == (1, 3, 64, 64)
    assert {"huge inputs", "zero inputs"} <= {c.name.split(",")[0] for c in cases}


def test_one_symbol_is_one_number(numpy_program: Any) -> None:
    inputs = [
        ("x", ("batch", "s"), "float32"),
        ("m", ("batch", "s + t"), "float32"),
        ("c", ("t", 2), "float32"),
    ]
    for case in generated_cases(numpy_program(None, inputs, [])):
        assert case.inputs["m"].shape[1] == case.inputs["x"].shape[1] + case.inputs["c"].shape[0]


def test_equal_seeds_give_equal_inputs(numpy_program: Any) -> None:
    program = numpy_program(None, [PIXELS], [])
    first, second = next(iter(generated_cases(program, 3))), next(iter(generated_cases(program, 3)))
    np.testing.assert_array_equal(first.inputs["pixels"], second.inputs["pixels"])
    assert not np.array_equal(
        first.inputs["pixels"], next(iter(generated_cases(program, 4))).inputs["pixels"]
    )


def test_undeclared_inputs_are_refused(numpy_program: Any) -> None:
    with pytest.raises(InputError, match=r"no declared shape or dtype.*--data"):
        list(generated_cases(numpy_program(None, [("x", ("n",), None)], [])))


def test_sizes_that_do_not_run_are_passed_over(numpy_program: Any) -> None:
    program = numpy_program(None, [PIXELS], [])
    cases = list(generated_cases(program, can_run=lambda inputs: inputs["pixels"].shape[2] < 100))
    assert [c.inputs["pixels"].shape[2:] for c in cases if c.group == "random"] == [
        (64, 64),
        (48, 160),
        (32, 96),
    ]
    assert all(c.inputs["pixels"].shape[2:] == (64, 64) for c in cases if c.group == "adversarial")
    assert len([c for c in generated_cases(program, can_run=lambda _: False) if c.group == "random"]) == 1
