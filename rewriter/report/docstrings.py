"""Docstrings (numpydoc) as what ``explain`` prints: the first lines, the sections, the parameters."""

from __future__ import annotations

import inspect
import re

__all__ = ["outline", "parameter_docs", "sections"]

_RULE = re.compile(r"-{3,}")
_FIELD = re.compile(r"(\w[\w ,]*)(?: :.*)?")


def sections(documented: object) -> dict[str, str]:
    """Return the text of each section by its title; what comes before the first one is under ``""``."""
    lines = (inspect.getdoc(documented) or "").splitlines()
    found: dict[str, list[str]] = {"": []}
    title = ""
    for at, line in enumerate(lines):
        if _RULE.fullmatch(line):
            continue
        if at + 1 < len(lines) and _RULE.fullmatch(lines[at + 1]):
            title = line
            found[title] = []
        else:
            found[title].append(line)
    return {name: _plain("\n".join(text).strip()) for name, text in found.items()}


def parameter_docs(documented: object) -> dict[str, str]:
    """Return what a docstring says about each parameter, by name; ``a, b`` documents both."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in sections(documented).get("Parameters", "").splitlines():
        if line[:1].strip() and (field := _FIELD.fullmatch(line.strip())):
            names = [n.strip() for n in field[1].split(",")]
            found.update(dict.fromkeys(names, ""))
        else:
            for name in names:
                found[name] = f"{found[name]} {line.strip()}".strip()
    return found


def outline(text: str) -> list[str | tuple[str, str]]:
    """Return paragraphs as one line each; a term with an indented explanation is a pair."""
    found: list[str | tuple[str, str]] = []
    fresh = True
    for line in text.splitlines():
        if not line.strip():
            fresh = True
        elif line.startswith(" "):
            last = found.pop()
            term, so_far = (last, "") if isinstance(last, str) else last
            found.append((term, f"{so_far} {line.strip()}".strip()))
        elif fresh or isinstance(found[-1], tuple):
            found.append(line)
            fresh = False
        else:
            found[-1] = f"{found[-1]} {line}"
    return found


def _plain(text: str) -> str:
    """Drop the marks of reStructuredText."""
    return re.sub(r"`+([^`]*)`+", r"\1", text)
