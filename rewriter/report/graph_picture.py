"""Steps of a graph as a picture: branches as lines, joined down to the last step, each with its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from rewriter.program.program import Program
from rewriter.report.drawing import Line, lines_of
from rewriter.report.markup import element
from rewriter.report.neighbourhood import Step, computed, neighbourhood
from rewriter.sites.site import AttentionSite

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["Drawing", "drawing_of", "graph_picture"]

ROW, JOIN, COLUMN = 26, 14, 16
"""Heights of a row with and without a step, and the distance between branches."""

LONGEST = 30
"""Characters of a name; the whole of it is shown when it is pointed at."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A site in both graphs.

    Parameters
    ----------
    site
        Its id.
    before, after
        The last step of each graph; None where there is none to show.
    """

    site: str
    before: Step | None
    after: Step | None


def drawing_of(original: Program, rewritten: Program, site: AttentionSite) -> Drawing:
    """Return what computes a site's result in both models, down from its inputs.

    In the rewritten model the values are looked up by name: one that gave them other names has no picture.
    """
    around = neighbourhood(original, site.anchor)
    before = around.steps[0] if around.site == site.id and around.steps else None
    known = {s.name: s.role for s in _every(before) if s.role} if before is not None else {}
    named = {
        value: role
        for value in site.inputs
        if (producer := original.graph.producer(value)) is not None and (role := known.get(producer.name))
    }
    return Drawing(site.id, before, computed(rewritten, site.output, site.inputs, named))


def graph_picture(last: Step, label: str) -> Markup:
    """Return the picture of a graph that ends in a step.

    Parameters
    ----------
    last
        The last step.
    label
        What it shows, for those who do not see it.
    """
    lines = [line for line in lines_of(last) if not line.text.startswith("^")]
    columns = max((len(line.graph) + 1) // 2 for line in lines)
    cells: list[Markup] = []
    for above, line in pairwise([Line(""), *lines]):
        height = JOIN if line.step is None and not line.text else ROW
        cells.append(_branches(above.graph, line, columns, height, line is lines[-1]))
        cells += _text(line, height)
    return element("div", *cells, class_="graph", role="group", aria_label=label)


def _every(step: Step) -> Sequence[Step]:
    found, waiting = [], [step]
    while waiting:
        at = waiting.pop()
        if at not in found:
            found.append(at)
            waiting += at.operands
    return found


def _branches(above: str, line: Line, columns: int, height: int, last: bool) -> Markup:
    drawn: list[Markup] = []
    middle = height / 2
    for at, mark in enumerate(line.graph):
        x = COLUMN * (at // 2) + COLUMN / 2
        if mark == "|":
            drawn.append(element("path", d=f"M{x} 0V{height}"))
        elif mark == "/":
            right = x + COLUMN
            drawn.append(element("path", d=f"M{right} 0C{right} {middle} {x} {middle} {x} {height}"))
        elif mark in "o*:":
            top = 0 if above[at : at + 1] not in ("", " ") else middle
            drawn.append(element("path", d=f"M{x} {top}V{middle if last else height}"))
            if mark != ":":
                drawn.append(element("path", d=f"M{x} {middle}h0", class_="asked" if mark == "*" else "node"))
    width = COLUMN * columns
    picture = element(
        "svg",
        *drawn,
        viewBox=f"0 0 {width} {height}",
        width=width,
        style=f"height:{height}px",
        aria_hidden=True,
    )
    return element("div", picture, style=f"min-height:{height}px")


def _text(line: Line, height: int) -> list[Markup]:
    if line.step is None:
        return [element("div", line.text, class_="said", style=f"min-height:{height}px")]
    step = line.step
    words: list[str] = []
    if step.role:
        words.append(element("em", step.role))
    # the end of a name says more than its beginning
    name = step.name if len(step.name) <= LONGEST else f"…{step.name[-LONGEST:]}"
    words += [element("strong", "as above" if line.again else step.op), " ", name]
    return [
        element("div", *words, class_="what", title=f"{step.op} {step.name} {step.shape}"),
        element("div", "" if step.shape == "?" else step.shape, class_="shape", title=step.shape),
    ]
