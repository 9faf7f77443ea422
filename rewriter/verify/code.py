"""What Python code a callable or a module is, in a hash: files may change between two runs."""

from __future__ import annotations

import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["code_of"]


def code_of(objects: Iterable[Any]) -> str:
    """Return a SHA-256 of the source of functions and of the classes of objects.

    That is the files that they stand in and every file that these import, directly or not; installed packages
    are left out. What stands in no file (a notebook) is taken by itself. Attributes are not looked at.

    Parameters
    ----------
    objects
        Functions, classes, or instances.
    """
    digest = hashlib.sha256()
    made_of = [x if isinstance(x, type) or inspect.isroutine(x) else type(x) for x in objects]
    for item in made_of:
        if _file(_module_of(item)) is None:
            with suppress(OSError, TypeError):
                digest.update(inspect.getsource(item).encode())
    for path in sorted(_reached(_module_of(item) for item in made_of)):
        digest.update(f"\n{path}\n".encode())
        with suppress(OSError):  # it was there when it was imported; that it is gone is seen
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _reached(start: Iterable[ModuleType | None]) -> set[Path]:
    """Return the files of modules, and of all that their names come from, that are not installed."""
    found: set[Path] = set()
    left = list(start)
    while left:
        module = left.pop()
        path = _file(module)
        if module is None or path is None or path in found or _installed(path):
            continue
        found.add(path)
        left += _mentioned(module)
    return found


def _mentioned(module: ModuleType) -> Iterator[ModuleType | None]:
    for value in list(vars(module).values()):
        yield value if isinstance(value, ModuleType) else _module_of(value)


def _module_of(item: Any) -> ModuleType | None:
    name = getattr(item, "__module__", None)
    return sys.modules.get(name) if isinstance(name, str) else None


def _file(module: ModuleType | None) -> Path | None:
    name = getattr(module, "__file__", None)
    return Path(name).resolve() if isinstance(name, str) else None


@cache
def _roots() -> tuple[Path, ...]:
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple({Path(sysconfig.get_path(kind)).resolve() for kind in kinds})


def _installed(path: Path) -> bool:
    return "site-packages" in path.parts or any(path.is_relative_to(root) for root in _roots())
