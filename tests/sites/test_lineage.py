"""Pieces of axes under views: what is kept, what is lost, and that nothing is invented."""

from __future__ import annotations

import pytest

from rewriter.algebra.sizes import ONE, Size
from rewriter.sites.lineage import (
    Axis,
    AxisKind,
    Part,
    Piece,
    Source,
    concatenated,
    cut,
    joined,
    kind_of,
    opaque,
    regroup,
    resized,
    size_of,
)


def piece(size: int | str, axis: int, stride: int | str = 1, kind: AxisKind | None = "token") -> Piece:
    return Piece(Size.of(size), kind, Source("x", axis), Size.of(stride))


ROWS, COLUMNS = piece("h", 2), piece("w", 3)
GRID: Axis = (ROWS, COLUMNS)
CHANNELS = opaque(Size.of(12), "feature")
TOKEN = Part(ONE, (), learned=True)


def sizes(*numbers: int | str) -> list[Size]:
    return [Size.of(n) for n in numbers]


def test_places_are_flattened_and_taken_apart_again() -> None:
    (b, tokens, c) = regroup([opaque(Size.of(2)), (ROWS,), (COLUMNS,), CHANNELS], sizes(2, "h*w", 12))
    assert (tokens, c) == (GRID, CHANNELS)
    assert regroup([b, tokens, c], sizes(2, "h", "w", 12)) == (b, (ROWS,), (COLUMNS,), CHANNELS)


def test_a_cut_axis_is_put_together_again_in_its_order_only() -> None:
    high, low = regroup([(piece(12, 2),)], sizes(3, 4))
    assert (high, low) == ((piece(3, 2, 4),), (piece(4, 2),))
    assert regroup([high, low], sizes(12)) == ((piece(12, 2),),)
    assert regroup([low, high], sizes(12)) == ((piece(4, 2), piece(3, 2, 4)),)


def test_a_reshape_that_cuts_across_loses_the_places() -> None:
    tokens, rest = regroup([(piece(4, 2),), (piece(6, 3),)], sizes(3, 8))
    assert not any(p.source for p in (*tokens, *rest))
    assert (size_of(tokens), size_of(rest), kind_of(tokens)) == (Size.of(3), Size.of(8), "token")


def test_parts_of_a_concatenation_come_off_whole() -> None:
    axis = concatenated([TOKEN, Part(size_of(GRID), GRID)])
    assert cut(axis, ONE, size_of(GRID), 1) == GRID
    assert cut(axis, Size.of(0), ONE, 1) == ()
    again = concatenated(
        [TOKEN, Part(Size.of(4), opaque(Size.of(4)), learned=True), Part(size_of(GRID), GRID)]
    )
    assert concatenated([TOKEN, Part(Size.of(4), opaque(Size.of(4)), learned=True),
                         Part(size_of(GRID), cut(axis, ONE, size_of(GRID), 1))]) == again  # fmt: skip
    assert cut(axis, Size.of(2), size_of(GRID) - 1, 1) == opaque(size_of(GRID) - 1, "token")


def test_an_empty_part_is_nothing() -> None:
    assert concatenated([Part(Size.of(0), (), learned=True), Part(size_of(GRID), GRID)]) == GRID


@pytest.mark.parametrize(
    ("start", "size", "step", "expected"),
    [
        (0, 24, 1, (piece(4, 2), piece(6, 3))),
        (0, 12, 1, opaque(Size.of(12), "token")),
        (0, 12, 2, opaque(Size.of(12), "token")),
        (23, 24, -1, opaque(Size.of(24), "token")),
    ],
)
def test_a_range_of_a_grid_is_no_grid(start: int, size: int, step: int, expected: Axis) -> None:
    assert cut((piece(4, 2), piece(6, 3)), Size.of(start), Size.of(size), step) == expected


def test_strided_places_are_another_source() -> None:
    (every_other,) = cut((piece(8, 2),), Size.of(0), Size.of(4), 2)
    assert every_other.source == Source("x", 2, (2,))


def test_a_window_along_one_axis_keeps_it_and_along_a_grid_does_not() -> None:
    new = Source("y", 2)
    assert resized((piece(8, 2),), Size.of(4), new) == (piece(4, 2),)
    assert resized((piece(4, 2), piece(6, 3)), Size.of(12), None) == opaque(Size.of(12), "token")
    assert resized(opaque(Size.of(8)), Size.of(4), new) == (Piece(Size.of(4), "token", new),)
    assert resized(opaque(Size.of(8), "feature"), Size.of(4), None) == opaque(Size.of(4), "feature")


def test_what_is_not_shown_gives_way() -> None:
    length = size_of(GRID)
    for kind in (None, "feature", "mixed"):
        for axes in ([GRID, opaque(length, kind)], [opaque(length, kind), GRID]):
            assert joined(axes) == GRID


def test_different_places_are_none() -> None:
    assert joined([GRID, (COLUMNS, ROWS)]) == opaque(size_of(GRID), "token")
    one = concatenated([TOKEN, Part(size_of(GRID), GRID)])
    other = concatenated([Part(size_of(GRID), GRID), TOKEN])
    assert joined([one, other]) == opaque(size_of(GRID) + 1, "token")


def test_kinds_meet() -> None:
    def met(a: AxisKind | None, b: AxisKind | None) -> AxisKind | None:
        return kind_of(joined([opaque(Size.of(5), a), opaque(Size.of(5), b)]))

    assert met(None, "token") == met("token", None) == met("token", "mixed") == "token"
    assert met("token", "feature") == "mixed"
    assert met(None, None) is None
