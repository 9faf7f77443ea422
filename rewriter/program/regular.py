"""Files that a user names: opened only if they are files, and read only if they are of a sane size."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from rewriter.errors import InputError

__all__ = ["LARGEST_TEXT", "open_regular", "read_text"]

LARGEST_TEXT = 1 << 28
"""Bytes of a file that is read as a whole."""


def open_regular(path: str | os.PathLike[str], what: str) -> BinaryIO:
    """Open a regular file for reading; a pipe would block and a device never end.

    Parameters
    ----------
    path
        Links are followed.
    what
        What was expected, for messages: ``"a plan"``.

    Raises
    ------
    InputError
        If there is nothing, or something else than a file, or it may not be read.

    Examples
    --------
    >>> open_regular("/dev/zero", "a plan")
    Traceback (most recent call last):
    rewriter.errors.InputError: /dev/zero is a device; expected a plan
    """
    try:
        _refuse(path, os.stat(path).st_mode, what)
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            # what was a file a moment ago may be something else now
            _refuse(path, os.fstat(handle).st_mode, what)
        except InputError:
            os.close(handle)
            raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{Path(path)} cannot be read ({reason}); expected {what}") from error
    return os.fdopen(handle, "rb")


def read_text(path: str | os.PathLike[str], what: str, largest: int = LARGEST_TEXT) -> str:
    """Return the text of a regular file.

    Raises
    ------
    InputError
        As for `open_regular`; if it is larger than ``largest`` bytes; if it is not UTF-8.
    """
    with open_regular(path, what) as file:
        size = os.fstat(file.fileno()).st_size
        if size > largest:
            raise InputError(f"{path} has {size} bytes; expected {what} of {largest} at most")
        data = file.read(largest)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text (byte {error.start} is not UTF-8); expected {what}") from error


_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def _refuse(path: str | os.PathLike[str], mode: int, what: str) -> None:
    found = next((name for test, name in _KINDS if test(mode)), None)
    if found is not None:
        raise InputError(f"{path} is {found}; expected {what}")
