from __future__ import annotations

import numpy as np
import pytest

from rewriter.algebra.sizes import Size
from rewriter.errors import InputError
from rewriter.verify.binding import base_symbols, bound_shape, bound_size, numpy_dtype


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("s0 + 1", 8),
        ("2*s0*b", 42),
        ("s0//2", 3),
        ("(s0 - 1)//2 + b", 6),
        ("Max(1, s0 - 9)", 1),
        ("floor(s0/2)", 3),
        ("5", 5),
        ("s0 % 4", 3),
    ],
)
def test_derived_sizes_follow(text: str, number: int) -> None:
    assert bound_size(Size.parse(text), {"s0": 7, "b": 3}) == number


def test_symbols_inside_opaque_ones_are_found() -> None:
    assert base_symbols([Size.parse("(s0 + t)//2"), Size.parse("b*s0"), Size.of(3)]) == ("b", "s0", "t")
    assert base_symbols([Size.parse("Max(1, s0)")]) == ("s0",)
    assert base_symbols([Size.parse("((a.b.1 - 1) // (2) + a.b.1)")]) == ("a.b.1",)
    assert bound_size(Size.parse("((a.b.1 - 1) // (2)) * 2"), {"a.b.1": 8}) == 6
    assert bound_shape((Size.symbol("batch size"),), {"batch size": 5}) == (5,)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("t", "no number was chosen"),
        ("s0 - 9", "is -2"),
        ("s0/2", "not a whole number"),
        ("s0//(s0 - 7)", "divides by zero"),
        ("__import__('os')", "no number was chosen"),
        ("s0 if s0 else 1", "not an expression"),
    ],
)
def test_refuses(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        bound_size(Size.parse(text), {"s0": 7})


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16", "int64", "bool", "float8_e4m3fn"])
def test_dtype_names(name: str) -> None:
    assert numpy_dtype(name).name == name
    assert np.zeros(3, numpy_dtype(name)).shape == (3,)


def test_a_tensor_that_would_fill_the_memory_is_not_made_up() -> None:
    shape = [Size.parse("n"), Size.of(1 << 20)]
    assert bound_shape(shape, {"n": 1 << 11}) == (1 << 11, 1 << 20)
    with pytest.raises(InputError, match="too large to be made up"):
        bound_shape(shape, {"n": (1 << 11) + 1})
