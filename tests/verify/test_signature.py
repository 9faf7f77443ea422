from __future__ import annotations

from typing import Any

import pytest

from rewriter.errors import InputError
from rewriter.verify.signature import match_signatures


def program(numpy_program: Any, inputs: str, outputs: str) -> Any:
    def values(names: str) -> list[Any]:
        return [(name, ("n", 4), "float32") for name in names.split()]

    return numpy_program(lambda *xs: xs, values(inputs), values(outputs))


@pytest.mark.parametrize(
    ("theirs", "match", "outputs"),
    [
        (("x y", "a b"), None, ((0, 0), (1, 1))),
        (("y x", "b a"), None, ((0, 1), (1, 0))),
        (("p q", "c d"), None, ((0, 0), (1, 1))),
        (("x y", "a d"), None, ((0, 0), (1, 1))),
        (("x y", "c d"), ["a=d"], ((0, 1), (1, 0))),
        (("x y", "c d"), {"a": "d", "b": "c"}, ((0, 1), (1, 0))),
        (("x y", "b a"), ["a=b", "b=a"], ((0, 0), (1, 1))),
        (("x y", "a c b"), "=c", ((0, 0), (1, 2))),
        (("x y", "a"), ["b="], ((0, 0),)),
    ],
)
def test_outputs_that_belong_together(
    numpy_program: Any, theirs: tuple[str, str], match: Any, outputs: tuple[tuple[int, int], ...]
) -> None:
    ours = program(numpy_program, "x y", "a b")
    assert match_signatures(ours, program(numpy_program, *theirs), match).outputs == outputs


def test_inputs_go_by_name_then_as_told_then_by_position(numpy_program: Any) -> None:
    ours = program(numpy_program, "x y", "a")
    assert match_signatures(ours, program(numpy_program, "y x", "a")).inputs == ("y", "x")
    assert match_signatures(ours, program(numpy_program, "p q", "a")).inputs == ("x", "y")
    assert match_signatures(ours, program(numpy_program, "p q", "a"), ["x=q"]).inputs == ("y", "x")


def test_it_says_what_it_assumed(numpy_program: Any) -> None:
    ours = program(numpy_program, "x y", "a b")
    assert match_signatures(ours, program(numpy_program, "y x", "b a")).notes == ()
    matching = match_signatures(ours, program(numpy_program, "x y", "c d e"), ["b=d", "=e"])
    assert matching.notes == (
        "left out of the outputs: e",
        "outputs matched by position, as names differ: a = c",
    )


@pytest.mark.parametrize(
    ("theirs", "match", "complaint"),
    [
        (("x", "a b"), None, r"different inputs: 2 \(x, y\) and 1 \(x\); .* --match"),
        (("x y", "a b c"), None, r"different outputs: 2 \(a, b\) and 3 \(a, b, c\)"),
        (
            ("x y", "b c"),
            None,
            "some outputs have the same name at another position: a, b in the original, b, c",
        ),
        (("x y", "c d"), ["e=c"], r"match e=c: .* the outputs \(a, b\) and \(c, d\)"),
        (("x y", "c d"), ["a=e"], "match a=e: expected ORIGINAL=REWRITTEN"),
        (("x y", "c d"), ["a"], "match 'a' is not ORIGINAL=REWRITTEN"),
        (("x y", "c d"), ["="], "match '=' is not"),
        (("x y", "c d"), ["a=c", "a=d"], "stands twice"),
        (("x y", "c d"), ["a=c", "b=c"], "stands twice"),
        (("x", "a b"), ["y="], "an input cannot be left out"),
    ],
)
def test_says_what_does_not_match(
    numpy_program: Any, theirs: tuple[str, str], match: Any, complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        match_signatures(program(numpy_program, "x y", "a b"), program(numpy_program, *theirs), match)
