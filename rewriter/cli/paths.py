"""Checks of paths before any work starts."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from rewriter.errors import InputError

__all__ = ["check_output"]


def check_output(path: str | os.PathLike[str], inputs: Iterable[str] = ()) -> Path:
    """Return where to write, if that is possible.

    Raises
    ------
    InputError
        When it is one of the inputs, a directory, or in a directory that is missing or not writable.
    """
    out = Path(path)
    for source in map(Path, inputs):
        if source.exists() and (out.resolve() == source.resolve() or (out.exists() and out.samefile(source))):
            raise InputError(f"output {out} is the input; it is never modified, so choose another path")
        if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
            raise InputError(
                f"output {out} is inside the input {source}, which is never modified; choose another path"
            )
    if out.is_dir():
        raise InputError(f"output {out} is a directory; give the name of a file in it")
    parent = out.resolve().parent
    if not parent.is_dir():
        raise InputError(f"output {out}: the directory {parent} does not exist; create it first")
    if not os.access(parent, os.W_OK | os.X_OK) or (out.exists() and not os.access(out, os.W_OK)):
        raise InputError(f"output {out} is not writable; choose another path")
    if out.exists() and not out.is_file():
        raise InputError(f"output {out} is not a regular file; choose another path")
    return out
