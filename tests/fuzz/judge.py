"""Whether a command that was given a bad file behaved."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

from tests.fuzz.worker import Ended

__all__ = ["OUTPUTS", "PAGE", "RECORD", "Snapshot", "page_problems", "problems", "snapshot"]

OUTPUTS = frozenset({"out.onnx", "out.onnx.plan.json", "out.onnx.data", "out.pt2", "out.pt2.plan.json"})
"""What commands are asked to write, and may when they end well."""

PAGE = "out.html"
"""What they write whether a model is right or wrong."""

RECORD = "record"
"""What is written to whatever comes of the work, and removed when it is done."""

_PLUMBING = re.compile(
    r"Traceback|unexpected \w+|a bug:|<class |<lambda>|__init__|object at 0x|Error\(|required positional"
    r"|allow_pickle"
)

Snapshot = dict[str, tuple[object, ...]]
"""Every name below a folder, with what would change if it were written to."""


def snapshot(folder: Path) -> Snapshot:
    """Return what lies in a folder."""
    found: Snapshot = {}
    for path in sorted(folder.rglob("*")):
        at = path.lstat()
        link = os.readlink(path) if stat.S_ISLNK(at.st_mode) else ""
        size = () if stat.S_ISDIR(at.st_mode) else (at.st_size, at.st_mtime_ns)
        found[str(path.relative_to(folder))] = (at.st_mode, link, *size)
    return found


def problems(
    arguments: Sequence[str], ended: Ended, before: Snapshot, after: Snapshot, refused: bool
) -> list[str]:
    """Return what a command did that it must not.

    Parameters
    ----------
    refused
        Whether the file is such that nothing but a refusal is right.
    """
    found = []
    if ended.killed:
        return [ended.killed]
    if ended.status not in (0, 1, 2):
        found.append(f"exit status {ended.status}")
    if refused and ended.status != 2:
        found.append(f"not refused: exit status {ended.status}")
    found += _said(ended)
    found += _raw(ended.out)
    if "--json" in arguments:
        found += _object(ended)
    touched = {name for name in before | after if before.get(name) != after.get(name)} - {RECORD}
    may = (OUTPUTS if ended.status == 0 else frozenset()) | ({PAGE} if ended.status != 2 else frozenset())
    if touched - may:
        found.append(f"touched {', '.join(sorted(touched))}")
    return found


def _raw(out: str) -> list[str]:
    """Judge standard output: nothing in it moves the cursor, changes colours or turns text around."""
    raw = sorted({c for c in out if c != "\n" and not c.isprintable()})
    return [f"unprintable on standard output: {raw}"] if raw else []


def page_problems(page: str) -> list[str]:
    """Return what is in a report that names in a model put there."""
    found = _Tags()
    found.feed(page)
    return [f"{what} in the report" for what in sorted(found.wrong)]


class _Tags(HTMLParser):
    """Elements and attributes that could run or fetch something."""

    def __init__(self) -> None:
        super().__init__()
        self.wrong: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "iframe", "object", "embed", "link", "base", "form"):
            self.wrong.add(f"<{tag}>")
        for name, value in attrs:
            fetches = name in ("src", "href", "action") and not (value or "").startswith(
                ("#", "data:image/png;")
            )
            if name.startswith("on") or fetches:
                self.wrong.add(f"{name}={value!r}")


def _said(ended: Ended) -> list[str]:
    """Judge standard error: nothing, or one line that says what is wrong."""
    lines = ended.err.splitlines()
    if match := _PLUMBING.search(ended.err):
        return [f"shows its plumbing: {ended.err[max(0, match.start() - 60) :][:700]}"]
    if ended.status != 2:
        return [f"noise on standard error: {ended.err[:300]}"] if lines else []
    if len(lines) != 1 or not lines[0].startswith("error: ") or len(lines[0]) < 30:
        return [f"expected one line of error, found: {ended.err[:500]!r}"]
    if len(lines[0]) > 1200:
        return [f"an error of {len(lines[0])} letters"]
    if any(ord(c) < 32 or ord(c) == 127 for c in lines[0]):
        return [f"control characters in the error: {lines[0]!r}"]
    return []


def _object(ended: Ended) -> list[str]:
    try:
        found = json.loads(ended.out)
    except ValueError:
        return [f"standard output is no JSON: {ended.out[:200]!r}"]
    if ended.status == 2 and list(found) != ["error"]:
        return [f"expected an object with an error, found {list(found)}"]
    return []
