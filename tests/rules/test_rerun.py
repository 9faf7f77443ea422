"""Whole numbers behind an edit: a few may differ where rounding decides, and not all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import onnx
import onnx.parser
import pytest

from rewriter.program.onnx import OnnxProgram
from rewriter.program.program import Insertion, Program
from rewriter.rules import fuse
from rewriter.rules.graph_rule import Change, Declined, GraphRule

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


def test_a_graph_without_outputs_is_left_alone() -> None:
    from rewriter.passes import parse_rules

    text = SENSITIVE.replace("(int64[50, 7] y)", "()")
    program = OnnxProgram(onnx.parser.parse_model(text))
    made, record = fuse(program, parse_rules("exact") or ())
    assert made is program and not record.matches
