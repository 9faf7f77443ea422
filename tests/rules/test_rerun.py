"""Whole numbers behind an edit: a few may differ where rounding decides, and not all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx
import onnx.parser
import pytest

from rewriter.program.onnx import OnnxProgram
from rewriter.program.program import Build, Insertion, Program
from rewriter.rules import fuse
from rewriter.rules.check import WHOLE, probes
from rewriter.rules.graph_rule import Change, Declined, GraphRule
from rewriter.verify.inputs import index_bounds

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle

SENSITIVE = """
    <ir_version: 8, opset_import: ["" : 17]>
    counts (float[50, 7] x) => (int64[50, 7] y)
    {
        million = Constant <value_float = 1000000.0> ()
        h = Mul(x, million)
        y = Cast <to = 7> (h)
    }
"""


class Times(GraphRule):
    """x times another number than the graph's."""

    name = "times"
    looks_for: ClassVar[str] = "a product"

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def changes(self, program: Program) -> tuple[Sequence[Change], Sequence[Declined]]:
        """Return one change, right or wrong."""

        def build(e: Emitter, handles: Sequence[Handle]) -> Handle:
            return e.map("mul", handles[0], e.constant(self.by, "float32"))

        edit = Insertion("h.new", ("x",), (program.prims()["x"].shape,), build, instead="h")
        return [Change("h", (edit,), "nothing")], ()


@pytest.mark.parametrize(("by", "ok"), [(1e6, True), (-1e6, False), (1.1e6, False)])
def test_whole_numbers_that_rounding_moves(by: float, ok: bool) -> None:
    program = OnnxProgram(onnx.parser.parse_model(SENSITIVE))
    _, record = fuse(program, [Times(by)])
    assert [m.committed for m in record.matches] == [ok]
    if not ok:
        assert "y differs at" in (record.matches[0].reason or "")


SQUARES = """
    <ir_version: 8, opset_import: ["" : 17]>
    squares (int64[n] counts) => (int64[n] y)
    {
        h = Mul(counts, counts)
        y = Identity(h)
    }
"""

LENGTHS = """
    <ir_version: 8, opset_import: ["" : 17]>
    lengths (int64[n] counts) => (float[n] y)
    {
        h = Mul(counts, counts)
        f = Cast <to = 1> (h)
        y = Sqrt(f)
    }
"""

LOOKED_UP = """
    <ir_version: 8, opset_import: ["" : 17]>
    words (int64[n] ids) => (float[n, 3] y)
    <float[5, 3] table = {1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.},
     float[5] column = {1., 4., 7., 10., 13.}, int64[1] last = {-1}>
    {
        h = Gather(table, ids)
        first = Gather(column, ids)
        one = Unsqueeze(first, last)
        y = Add(h, one)
    }
"""


class Instead(GraphRule):
    """The value h, computed in another way."""

    name = "instead"
    looks_for: ClassVar[str] = "h"

    def __init__(self, source: str, build: Build) -> None:
        super().__init__()
        self.source, self.build = source, build

    def changes(self, program: Program) -> tuple[Sequence[Change], Sequence[Declined]]:
        """Return one change, right or wrong."""
        shape = program.prims()[self.source].shape
        edit = Insertion("h.new", (self.source,), (shape,), self.build, instead="h")
        return [Change("h", (edit,), "nothing")], ()


def _itself(e: Emitter, handles: Sequence[Handle]) -> Handle:
    return e.map("identity", handles[0])


def _power(e: Emitter, handles: Sequence[Handle]) -> Handle:
    return e.map("mul", *(e.map("mul", handles[0], handles[0]) for _ in range(2)))


def _again(e: Emitter, handles: Sequence[Handle]) -> Handle:
    return e.map("mul", handles[0], handles[0])


def _of_two(e: Emitter, handles: Sequence[Handle]) -> Handle:
    """Rows 0 and 1 of the table, whatever the place is."""
    rows = np.arange(1, 16, dtype=np.float32).reshape(5, 3)
    n = e.shape(handles[0])[0]
    place = e.map("cast", e.reshape(handles[0], (n, 1)), dtype="float32")
    step = e.map("mul", place, e.constant(rows[1:2] - rows[:1], "float32"))
    other = e.map("sub", e.constant(1.0, "float32"), place)
    bent = e.map("mul", e.map("mul", place, other), e.constant(7.0, "float32"))
    return e.map("add", e.map("add", e.constant(rows[:1], "float32"), step), bent)


@pytest.mark.parametrize(
    ("text", "source", "build", "ok"),
    [
        (SQUARES, "counts", _again, True),
        (SQUARES, "counts", _itself, False),  # right for 0 and 1
        (LENGTHS, "counts", _power, False),
        (LOOKED_UP, "ids", _of_two, False),
    ],
)
def test_whole_numbers_are_more_than_0_and_1(text: str, source: str, build: Build, ok: bool) -> None:
    program = OnnxProgram(onnx.parser.parse_model(text))
    _, record = fuse(program, [Instead(source, build)])
    (match,) = record.matches
    assert match.committed == ok and (ok or "differs" in (match.reason or ""))


def test_places_are_within_their_tables() -> None:
    """A place that is too large would fail in the original, and nothing would be seen."""
    program = OnnxProgram(onnx.parser.parse_model(LOOKED_UP))
    prims, bounds = [program.prims()["ids"]], index_bounds(program, ["ids"])
    made = [arrays for seed in range(9) for _, arrays in probes(prims, ["ids"], seed, WHOLE, bounds)]
    seen = {place for arrays in made for place in arrays["ids"].tolist()}
    assert seen == {0, 1, 2, 3, 4}


def test_a_graph_without_outputs_is_left_alone() -> None:
    from rewriter.passes import parse_rules

    text = SENSITIVE.replace("(int64[50, 7] y)", "()")
    program = OnnxProgram(onnx.parser.parse_model(text))
    made, record = fuse(program, parse_rules("exact") or ())
    assert made is program and not record.matches
