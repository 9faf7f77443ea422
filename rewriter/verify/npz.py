"""Arrays in ``.npz`` files, read with what the file promises checked before anything is allocated."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

import numpy as np

from rewriter.errors import InputError
from rewriter.program.regular import open_regular

__all__ = ["read_npz"]

_WHAT = "a .npz file of plain arrays (numpy.savez)"
_MOST_MEMBERS = 10_000
_PIECE = 1 << 24  # bytes
_FAILURES = (
    OSError, ValueError, EOFError, KeyError, NotImplementedError, RuntimeError, RecursionError, SyntaxError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What reading a damaged archive raises."""

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return the arrays of an archive by name. Pickled objects are never loaded.

    Raises
    ------
    InputError
        If it is no such archive, is damaged, holds objects, or has more in it than the memory holds.
    """
    with open_regular(path, _WHAT) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return dict(_arrays(archive, path))
        except zipfile.BadZipFile as error:
            raise InputError(f"data {path}: not a zip archive ({error}); expected {_WHAT}") from error
        except _FAILURES as error:
            raise InputError(f"data {path}: damaged ({_said(error)}); expected {_WHAT}") from error
        except MemoryError as error:
            raise InputError(f"data {path}: its arrays do not fit into memory; give smaller ones") from error


def _arrays(archive: zipfile.ZipFile, path: str | os.PathLike[str]) -> Iterator[tuple[str, np.ndarray]]:
    members = archive.infolist()
    if len(members) > _MOST_MEMBERS:
        raise InputError(f"data {path}: holds {len(members)} members; expected {_MOST_MEMBERS} at most")
    seen: set[str] = set()
    for member in members:
        name = member.filename.removesuffix(".npy")
        where = f"data {path}, member {member.filename[:80]!r}"
        if name == member.filename or name in seen or ".." in name.split("/") or name.startswith("/"):
            raise InputError(f"{where}: expected the name of one array, such as x.npy")
        seen.add(name)
        with archive.open(member) as stream:
            yield name, _array(stream, member.file_size, where)


def _array(stream: IO[bytes], size: int, where: str) -> np.ndarray:
    try:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            raise InputError(f"{where}: version {version[0]}.{version[1]} of the format; expected 1.0 or 2.0")
        shape, fortran, dtype = _HEADERS[version](stream)
    except (ValueError, SyntaxError, RecursionError, TypeError) as error:
        raise InputError(f"{where}: no array of numpy.save") from error
    if dtype.hasobject:
        raise InputError(f"{where}: holds Python objects, which could run code when loaded; save numbers")
    count = 1
    for n in shape:
        if n < 0:
            raise InputError(f"{where}: has shape {shape}; sizes are not negative")
        count *= n
    left = size - stream.tell()
    if count * dtype.itemsize != left:
        raise InputError(
            f"{where}: {dtype} of shape {shape} takes {count * dtype.itemsize} bytes; the file has {left}"
        )
    array = np.empty(count, dtype)  # all of it at once: what does not fit fails before anything is unpacked
    bytes_ = array.view(np.uint8) if array.nbytes else np.empty(0, np.uint8)
    filled = 0
    while filled < len(bytes_):
        piece = stream.read(min(_PIECE, len(bytes_) - filled))
        if not piece:
            raise EOFError("it ends too early")
        bytes_[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
        filled += len(piece)
    if fortran:
        return array.reshape(shape[::-1]).transpose()
    return array.reshape(shape)


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
