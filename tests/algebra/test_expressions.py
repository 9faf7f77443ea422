from __future__ import annotations

import pytest

from rewriter.algebra.expressions import names_in, value_of


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("s0", {"s0"}),
        ("past.1", {"past.1"}),
        ("batch size", {"batch size"}),
        ("min(77, s0 // past.1)", {"s0", "past.1"}),
        ("Max(1, s0)", {"s0"}),
        ("3 * (4 - 1)", set()),
    ],
)
def test_names(text: str, names: set[str]) -> None:
    assert names_in(text) == names


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("s0", 7),
        ("batch size", 5),
        ("(batch size + 1) // 4", 1),
        ("past.1 % 4 + past.1", 10),
        ("floor(s0/2)", 3),
        ("ceiling(s0/2) - -1", 5),
        ("FloorDiv(s0, 2) * Mod(s0, 4)", 9),
    ],
)
def test_values(text: str, value: int) -> None:
    assert value_of(text, {"s0": 7, "batch size": 5, "past.1": 9}) == value


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("t + 1", "'t'"),
        ("unknown.name // 2", "unknown.name"),
        ("s0 % (s0 - 7)", "divides by zero"),
        ("min(s0)", "not an expression"),
        ("s0.bit_length()", "no number"),
        ("1.5 * s0", "not an expression"),
        ("(" * 500 + "s0" + ")" * 500, "no number"),
    ],
)
def test_what_is_no_size_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        value_of(text, {"s0": 7})
