"""``.pt2`` archives: vetted before PyTorch loads them, written atomically."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from rewriter.errors import InputError
from rewriter.program.regular import open_regular

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["read_archive", "write_archive"]

_KINDS = {
    b"\x80": "a pickle",
    b"PK": "a damaged or truncated zip archive",
    b"{": "text",
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF file",
}
"""What a file that is no archive may be, by how it starts."""


def read_archive(path: str | os.PathLike[str]) -> tuple[ExportedProgram, dict[str, str]]:
    """Return the program in an archive, and its extra files by name.

    Raises
    ------
    InputError
        If the file is not an archive of `torch.export.save`, or holds something that is not plain data.
    """
    from torch.export.pt2_archive._package import PT2ArchiveReader, load_pt2

    import rewriter.operators  # noqa: F401 - an archive may call them
    from rewriter.program.pt2_vet import vet_members

    with open_regular(path, "a .pt2 archive of torch.export.save") as file:
        _vet_amount(file, path)
    try:
        reader = PT2ArchiveReader(os.fspath(path))
    except (RuntimeError, AssertionError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {_found(path)}; expected a .pt2 archive of torch.export.save") from error
    try:
        vet_members(reader, os.fspath(path))
        contents = load_pt2(os.fspath(path))
    except InputError:
        raise
    except Exception as error:  # torch raises many kinds on an archive whose parts disagree
        raise InputError(f"{path}: damaged: PyTorch cannot load it: {_said(error)}") from error
    return contents.exported_programs["model"], {k: str(v) for k, v in contents.extra_files.items()}


def _vet_amount(file: BinaryIO, path: str | os.PathLike[str]) -> None:
    """Refuse an archive that holds more than its own size: PyTorch compresses nothing."""
    try:
        with zipfile.ZipFile(file) as archive:
            held = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # PyTorch's own reader says what is wrong
    size = os.fstat(file.fileno()).st_size
    if held > size:
        raise InputError(
            f"{path}: holds {held} bytes in a file of {size}; torch.export.save compresses nothing, so it is "
            "not from there"
        )


def _said(error: Exception) -> str:
    """Return what PyTorch says of an archive in one line; what Python says of PyTorch's code says nothing."""
    if isinstance(
        error, TypeError | AttributeError | KeyError | IndexError | AssertionError | RecursionError
    ):
        return "its parts do not fit together"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return first.strip()[:300]


def _found(path: str | os.PathLike[str]) -> str:
    with open(path, "rb") as file:
        start = file.read(8)
    if not start:
        return "is empty"
    return f"is {next((kind for magic, kind in _KINDS.items() if start.startswith(magic)), 'no archive')}"


def write_archive(exported: ExportedProgram, path: str | os.PathLike[str], extra: Mapping[str, str]) -> None:
    """Write an archive with extra files: complete, or not there; the same bytes for the same program.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    import torch

    target = Path(path)
    if target.suffix != ".pt2":
        raise InputError(f"{path}: a traced program is saved as .pt2; give a name that ends in .pt2")
    if target.exists() and not target.is_file():
        raise InputError(f"{path}: not a regular file; expected the name of a file to write")
    try:
        # members are named after the file: the temporary one has the same name, in a folder of its own
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".rewriter-") as folder:
            temporary = Path(folder) / target.name
            torch.export.save(exported, temporary, extra_files=dict(sorted(extra.items())))
            with suppress(FileNotFoundError):
                temporary.chmod(target.stat().st_mode & 0o777)
            os.replace(temporary, target)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); name a file in a writable folder"
        ) from error
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path}: cannot be written ({reason})") from error
