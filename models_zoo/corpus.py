"""English text that comes with Python and the scientific packages: documentation, as paragraphs.

Weights trained on it can be reproduced on any machine that has the same versions; the held-out part is
bundled (``data/held_out.txt``) so that it never changes.
"""

from __future__ import annotations

import ast
import inspect
import sysconfig
import warnings
from collections.abc import Iterator
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

__all__ = ["held_out_text", "training_text"]

HELD_OUT_TOPICS = ("compound", "execmodel", "import", "formatstrings")
"""Topics of Python's own help that are held out: statements, execution, imports, format strings."""

_PACKAGES = ("networkx", "numpy")


def held_out_text() -> str:
    """Return the held-out topics of the running Python: what ``data/held_out.txt`` was written from."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name].strip() for name in HELD_OUT_TOPICS) + "\n"


def training_text() -> str:
    """Return the training text: every paragraph once, none that occurs in the held-out text."""
    bundled = files("rewriter.models_zoo").joinpath("data", "held_out.txt").read_text(encoding="utf-8")
    seen = set(_paragraphs(bundled)) | set(_paragraphs(held_out_text()))
    kept = []
    for text in _texts():
        for paragraph in _paragraphs(text):
            if paragraph not in seen:
                seen.add(paragraph)
                kept.append(paragraph)
    return "\n\n".join(kept) + "\n"


def _paragraphs(text: str) -> list[str]:
    return [p.strip("\n") for p in text.split("\n\n") if p.strip()]


def _texts() -> Iterator[str]:
    from pydoc_data.topics import topics

    yield from (topics[name] for name in sorted(topics) if name not in HELD_OUT_TOPICS)
    for path in sorted(_folder("sklearn").joinpath("datasets", "descr").glob("*.rst")):
        yield path.read_text(encoding="utf-8")
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        yield from _docstrings(path)
    for package in _PACKAGES:
        for path in sorted(_folder(package).rglob("*.py")):
            if "tests" not in path.parts:
                yield from _docstrings(path)


def _folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"{package} is not installed; the training text is read from it", name=package
        )
    return Path(spec.origin).parent


def _docstrings(path: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text is not None and len(text) > 200:
                yield inspect.cleandoc(text)
