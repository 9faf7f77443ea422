"""What goes to standard output and to standard error, and nothing else prints."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from rewriter.report.json_text import dumps
from rewriter.verify.progress import Progress, silent

__all__ = ["emit_error", "emit_json", "emitted", "fresh", "progress_bar", "say", "show", "width"]

PATIENCE = 1.0
"""Seconds before a progress bar shows up."""

NARROWEST = 80
"""Columns that a table is given at least: what a narrower one would cut off is worth more than its looks."""

_written: list[str] = []


def emit_json(value: Any) -> None:
    """Print the one JSON object of a command."""
    _written.append("json")
    sys.stdout.write(dumps(value) + "\n")
    sys.stdout.flush()


def emit_error(message: str) -> None:
    """Print an error as the one JSON object."""
    emit_json({"error": message})


def fresh() -> None:
    """Forget what was printed: a command begins."""
    _written.clear()


def emitted() -> bool:
    """Whether the JSON object was printed already."""
    return bool(_written)


class _Printable(Console):
    """A console on which names of a model move no cursor, set no title and turn no text around."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render, with a question mark for whatever is not printable."""
        for part in super().render(renderable, options):
            if part.control or _plain(part.text):
                yield part
            else:
                yield Segment("".join(c if _plain(c) else "?" for c in part.text), part.style)


def _plain(text: str) -> bool:
    return text.replace("\n", "").isprintable()


def show(*parts: RenderableType) -> None:
    """Print tables and text on standard output; what is not printable becomes a question mark.

    Where it is narrower than `NARROWEST`, lines run on.
    """
    console = _Printable()
    console.width = max(console.width, NARROWEST)
    for part in parts:
        console.print(part)


def width() -> int:
    """Return how many columns standard output has."""
    return Console().width


def say(message: str, style: str = "") -> None:
    """Print one line on standard error, never wrapped: a path in it can be copied."""
    _Printable(stderr=True).print(Text(message, style=style), soft_wrap=True)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Give a callback that draws a bar on standard error while the block runs, on a terminal only."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield silent
        return
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    bar = Bar(*columns, console=console, transient=True)
    task = bar.add_task("", total=None)
    start, running = time.perf_counter(), False

    def tell(what: str, done: int, total: int) -> None:
        nonlocal running
        bar.update(task, description=what, completed=done, total=total or None)
        if not running and time.perf_counter() - start > PATIENCE:
            bar.start()
            running = True

    try:
        yield tell
    finally:
        bar.stop()
