"""The source tree as the structural tests see it: files, and what each module imports and when."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["ROOT", "Import", "imports", "module", "modules", "tracked", "tree"]

ROOT = Path(__file__).resolve().parents[2]
_FOLDERS = ("rewriter", "passes", "kernels", "models_zoo")
_LINKS = ("passes", "kernels", "models_zoo")


@dataclass(frozen=True)
class Import:
    """One imported module: its dotted name, the line, and when it is imported.

    ``when`` is ``"load"`` (with the module), ``"call"`` (inside a function) or ``"types"``
    (type checking only).
    """

    name: str
    line: int
    when: str

    def within(self, *packages: str) -> bool:
        """Whether the imported module is one of these, or below one."""
        return any(self.name == p or self.name.startswith(f"{p}.") for p in packages)


@cache
def tracked() -> tuple[Path, ...]:
    """Files that git tracks or would add, relative to the root; links are not followed."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = (Path(p) for p in listed.split("\0") if p)
    return tuple(sorted(p for p in paths if (ROOT / p).exists()))


def modules(*prefixes: str) -> Iterator[Path]:
    """Yield the Python files of the product, or those below ``prefixes``, relative to the root."""
    for path in tracked():
        wanted = not prefixes or any(path.is_relative_to(p) for p in prefixes)
        if wanted and path.suffix == ".py" and path.parts[0] in _FOLDERS:
            yield path


def module(path: Path) -> str:
    """Return the dotted name that a file is imported by."""
    parts = path.with_suffix("").parts
    full = ("rewriter", *parts) if parts[0] in _LINKS else parts
    return ".".join(full[:-1] if full[-1] == "__init__" else full)


@cache
def tree(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), str(path))


@cache
def imports(path: Path) -> tuple[Import, ...]:
    """Return what a file imports."""
    return tuple(_imports(tree(path), "load"))


def _imports(node: ast.AST, when: str) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.Import(names):
                yield from (Import(n.name, child.lineno, when) for n in names)
            case ast.ImportFrom(source, names):
                assert child.level == 0, "a relative import"
                assert source is not None
                # `from rewriter import models_zoo` imports a module of that name
                whole = source == "rewriter"
                yield from (
                    Import(f"{source}.{n.name}" if whole else source, child.lineno, when) for n in names
                )
            case ast.If(test) if "TYPE_CHECKING" in ast.dump(test):
                yield from (i for part in child.body for i in _imports(_body(part), "types"))
                yield from (i for part in child.orelse for i in _imports(_body(part), when))
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                yield from _imports(child, when if when == "types" else "call")
            case _:
                yield from _imports(child, when)


def _body(statement: ast.stmt) -> ast.Module:
    return ast.Module([statement], [])
