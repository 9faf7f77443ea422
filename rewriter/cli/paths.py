"""Checks of paths before any work starts."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from rewriter.errors import InputError

__all__ = ["check_output"]


def check_output(path: str | os.PathLike[str], inputs: Iterable[str] = ()) -> Path:
    """Return where to write, if that is possible.

    Raises
    ------
    InputError
        When it is one of the inputs, a directory, a pipe or a device, or in a directory that is missing or
        not writable.
    """
    out = Path(path)
    for source in (Path(name) for name in inputs if os.path.exists(name)):
        if out.resolve() == source.resolve() or (os.path.exists(out) and out.samefile(source)):
            raise InputError(f"output {out} is the input; it is never modified, so choose another path")
        if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
            raise InputError(
                f"output {out} is inside the input {source}, which is never modified; choose another path"
            )
    if os.path.isdir(out):
        raise InputError(f"output {out} is a directory; give the name of a file in it")
    parent = out.resolve().parent
    if not parent.is_dir():
        raise InputError(f"output {out}: the directory {parent} does not exist; create it first")
    try:
        found = os.stat(out)
    except FileNotFoundError:
        found = None
    except OSError as error:
        raise InputError(f"output {out}: {error.strerror}; choose another path") from error
    if not os.access(parent, os.W_OK | os.X_OK) or (found is not None and not os.access(out, os.W_OK)):
        raise InputError(f"output {out} is not writable; choose another path")
    if found is not None and not stat.S_ISREG(found.st_mode):
        raise InputError(f"output {out} is not a regular file; choose another path")
    return out
