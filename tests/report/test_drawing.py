"""Layout of drawings: branches, columns, and no line wider than asked for."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from rewriter.report.drawing import draw
from rewriter.report.neighbourhood import Neighbourhood, Step


def drawn(last: Step, width: int = 80) -> list[str]:
    return draw(Neighbourhood("n", ("What it is.",), None, None, (last,)), width)


def step(name: str, *operands: Step, role: str = "", **more: object) -> Step:
    made = Step(name, "op", "[2, n]", role, list(operands))
    for key, value in more.items():
        setattr(made, key, value)
    return made


def test_a_site_reads_from_its_operands_down() -> None:
    scores = step("scores", step("q", role="query"), step("kt", step("k", role="key")))
    found = drawn(step("y", scores, step("v", role="value"), mark=True, note="attention.0"))
    assert found == [
        "What it is.",
        "",
        "o    query  q       op  [2, n]",
        "| o  key    k       op  [2, n]",
        "| o         kt      op  [2, n]",
        "|/",
        "o           scores  op  [2, n]",
        "| o  value  v       op  [2, n]",
        "|/",
        "*           y       op  [2, n]",
        "^ attention.0",
    ]


def test_three_operands_meet_in_one_step() -> None:
    assert drawn(step("where", step("a"), step("b"), step("c")))[2:] == [
        "o      a       op  [2, n]",
        "| o    b       op  [2, n]",
        "| | o  c       op  [2, n]",
        "| |/",
        "|/",
        "o      where   op  [2, n]",
    ]


def test_what_is_read_twice_is_drawn_once() -> None:
    x = step("x", step("top"))
    text = "\n".join(drawn(step("y", x, step("z", x))))
    assert text.count(" top ") == 1
    assert "as above" in text


def test_what_is_left_out_is_counted() -> None:
    assert any("... 3 more above" in line for line in drawn(step("y", step("x", more=3))))


def test_a_note_is_wrapped_beside_the_branches() -> None:
    noted = step("x", note="one two three four five six seven eight nine ten eleven twelve")
    lines = drawn(step("y", step("a"), noted), 40)
    at = next(k for k, line in enumerate(lines) if "^ one" in line)
    assert lines[at].startswith("| | ^ one") and lines[at + 1].startswith("| |   ")


def wide(depth: int) -> Step:
    return step("x" * depth, *(wide(depth - 1) for _ in range(3))) if depth else step("leaf")


@pytest.mark.parametrize("width", [1, 20, 40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    name = "/model/layers.11/self_attn/[bold]MatMul_with_a_very_long_name_1" * 2
    cases = [
        step(name, step("q" * 70, role="query, key, value"), step("日本語" * 20), note="why " * 40),
        wide(5),
        step("line\nbreak\x1b[31m"),
    ]
    for case in cases:
        for line in drawn(case, width):
            assert cell_len(line) <= max(width, 20)
            assert line.isprintable()
