"""Steps as a drawing in plain characters: operands above, joined down to the last step."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size

from rewriter.report.neighbourhood import Neighbourhood, Step

__all__ = ["Line", "draw", "lines_of"]


AGAIN = "as above"
"""In place of the operator of a step that is drawn further up."""

MOST = 8
"""Lines side by side; what would need more is not drawn."""


@dataclass(frozen=True)
class Line:
    """One line of a drawing.

    Parameters
    ----------
    graph
        The branches, two characters to a column: ``|`` goes on, ``o`` and ``*`` are steps, ``/`` joins
        the branch on its right to the one on its left, ``:`` is left out.
    step
        That stands on it, or None.
    text
        In place of a step.
    again
        Whether the step is drawn further up.
    """

    graph: str
    step: Step | None = None
    text: str = ""
    again: bool = False


def draw(found: Neighbourhood, width: int) -> list[str]:
    """Return the lines of a drawing, none wider than ``width``.

    ``o`` is a step, ``*`` the one that was asked for; a sentence below a step starts with ``^``.
    """
    width = max(width, 20)
    lines = [part for said in found.summary for part in _wrapped(said, width)]
    for last in found.steps:
        lines += ["", *_placed(list(lines_of(last)), width)]
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(_plain(text), width, break_on_hyphens=False)


def _plain(text: str) -> str:
    """Return text without what would move the cursor."""
    return "".join(c if c.isprintable() else "?" for c in text)


def lines_of(last: Step) -> Iterator[Line]:
    """Yield the lines from the top down to the last step."""
    seen: set[int] = set()

    def walk(step: Step, column: int) -> Iterator[Line]:
        before = "| " * column
        if id(step) in seen:
            yield Line(f"{before}o", step, again=True)
            return
        seen.add(id(step))
        shown = step.operands[: MOST - column] if column < MOST else []
        for k, operand in enumerate(shown):
            yield from walk(operand, column + k)
        for k in range(len(shown) - 1, 0, -1):
            yield Line(f"{before}{'| ' * (k - 1)}|/")
        left_out = step.more + len(step.operands) - len(shown)
        if left_out:
            yield Line(f"{before}{':' if not shown else '|'}", text=f"... {left_out} more above")
        yield Line(f"{before}{'*' if step.mark else 'o'}", step)
        if step.note is not None:
            yield Line(before + ("|" if step is not last else ""), text=f"^ {step.note}")

    return walk(last, 0)


def _placed(lines: Sequence[Line], width: int) -> Iterator[str]:
    """Yield lines as text in columns: branches, name, operator, shape, role."""
    steps = [line.step for line in lines if line.step is not None]
    graph = max(len(line.graph) for line in lines) + 2
    roles = min(max((len(s.role) for s in steps), default=0), 12)
    ops = min(max(len(AGAIN if line.again else line.step.op) for line in lines if line.step), 22)
    shapes = min(max(len(s.shape) for s in steps), 26)
    room = width - graph - roles - ops - shapes - 6
    if room < 12:
        shapes, room = 0, room + shapes + 2
    if room < 12:
        ops, room = 10, room + ops - 10
    names = max(min(max(cell_len(_plain(s.name)) for s in steps), room), 6)
    for line in lines:
        if line.step is None:
            yield from _note(line, width)
            continue
        step = line.step
        cells = [(step.role, roles), (step.name, names), (AGAIN if line.again else step.op, ops)]
        if shapes:
            cells.append((step.shape, shapes))
        text = "  ".join(_cell(_plain(value), size) for value, size in cells if size)
        yield _cut(f"{line.graph:<{graph}}{text}".rstrip(), width)


def _note(line: Line, width: int) -> Iterator[str]:
    if not line.text:
        yield _cut(line.graph.rstrip(), width)
        return
    room = max(width - len(line.graph) - 3, 12)
    first = f"{line.graph}{' ' if line.graph and not line.graph.endswith(' ') else ''}"
    for k, part in enumerate(_wrapped(line.text, room)):
        yield _cut(f"{first}{'' if k == 0 else '  '}{part}".rstrip(), width)


def _cell(text: str, size: int) -> str:
    """Return a text of this width: what is too long loses its middle."""
    if cell_len(text) > size:
        keep = max(size - 2, 1)
        tail = (keep + 1) // 2 if keep > 2 else 0
        text = f"{text[: keep - tail]}..{text[len(text) - tail :] if tail else ''}"
    return set_cell_size(text, size)


def _cut(text: str, width: int) -> str:
    return text if cell_len(text) <= width else set_cell_size(text, width).rstrip()
