"""What a result rests on: versions, machine, contents of the files, seed and command line."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rewriter.errors import InputError

if TYPE_CHECKING:
    from rewriter.program.program import Program

__all__ = [
    "FileHash",
    "Provenance",
    "file_hash",
    "fingerprints",
    "package_versions",
    "provenance",
    "read_from",
]

PACKAGES = ("rewriter", "torch", "onnx", "onnx-ir", "onnxruntime", "numpy", "transformers", "triton")
"""Distributions whose version matters to a result; those that are not installed are left out."""

BLOCK = 1 << 20
"""Bytes that are read at a time."""


@dataclass(frozen=True, slots=True)
class FileHash:
    """The contents of a file, or of all files of a directory.

    Parameters
    ----------
    path
        As the user wrote it.
    sha256
        Of the file's bytes; of a directory, of the sorted lines ``HASH  RELATIVE-PATH`` of its files.
    size
        Bytes in all.
    """

    path: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Provenance:
    """Everything that is needed to get a result again.

    Parameters
    ----------
    versions
        Version by package, and ``python``.
    machine
        Operating system, architecture and number of processors.
    files
        Models, data and plans that were read.
    seed
        Of everything random.
    command
        The command line, or None when called from code.
    models
        SHA-256 of the graph and the weights of models that were read from no file, by name
        (`rewriter.verify.fingerprint`).
    data
        SHA-256 of the arrays that the models were given, by the name of the data, wherever they came from.
    """

    versions: Mapping[str, str]
    machine: str
    files: tuple[FileHash, ...]
    seed: int
    command: str | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "versions": dict(self.versions),
            "machine": self.machine,
            "models": dict(self.models),
            "data": dict(self.data),
            "files": [{"path": f.path, "sha256": f.sha256, "bytes": f.size} for f in self.files],
            "seed": self.seed,
            "command": self.command,
        }


def provenance(
    names: Iterable[str | os.PathLike[str] | None],
    seed: int,
    command: Sequence[str] | None = None,
    files: Mapping[str, str] = MappingProxyType({}),
    models: Mapping[str, str] = MappingProxyType({}),
    data: Mapping[str, str] = MappingProxyType({}),
) -> Provenance:
    """Return what a result rests on.

    Parameters
    ----------
    names
        What was read, as the user wrote it; what names no file (``zoo:NAME``, ``module:callable``, None)
        is passed over. A file that stands twice is listed once.
    seed
        Of everything random.
    command
        The words of the command line.
    files
        What else was read, by what to call it.
    models
        What `fingerprints` returns.
    data
        The hash of all arrays of the data, by what to call it.

    Raises
    ------
    InputError
        When a file cannot be read.

    Examples
    --------
    >>> provenance(["zoo:nothing"], seed=3, command=["rewriter", "validate", "a b.onnx"]).command
    "rewriter validate 'a b.onnx'"
    """
    import shlex

    paths = dict.fromkeys(os.fspath(name) for name in names if name is not None)
    return Provenance(
        versions=package_versions(),
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        files=(
            *(file_hash(path) for path in paths if Path(path).exists()),
            *(replace(file_hash(path), path=name) for name, path in files.items() if name not in paths),
        ),
        seed=seed,
        command=shlex.join(command) if command is not None else None,
        models=models,
        data=data,
    )


def fingerprints(programs: Mapping[str, Program]) -> dict[str, str]:
    """Return the hash of every model that was read from no file (``zoo:NAME``, ``module:callable``)."""
    from rewriter.verify.fingerprint import fingerprint

    return {name: fingerprint(p) for name, p in programs.items() if not Path(name).exists() and not p.files}


def read_from(name: str, files: Iterable[str]) -> dict[str, str]:
    """Return every file that a model was read from besides what its name says, by what to call it.

    Parameters
    ----------
    name
        As the user wrote it.
    files
        What was read, links resolved: see `rewriter.program.program.Program.files`.

    Examples
    --------
    >>> read_from("zoo:small", ["/cache/small.onnx"])
    {'zoo:small (small.onnx)': '/cache/small.onnx'}
    """
    if not Path(name).exists():
        return {f"{name} ({os.path.basename(file)})": file for file in sorted(files)}
    here = os.path.realpath(name)
    folder, real = os.path.dirname(name), os.path.dirname(here)
    others = (file for file in sorted(files) if file != here)
    return {os.path.join(folder, os.path.relpath(file, real)): file for file in others}


def file_hash(path: str | os.PathLike[str]) -> FileHash:
    """Return the SHA-256 of a file, or of all files of a directory; read in blocks.

    Raises
    ------
    InputError
        When it cannot be read, or is neither a file nor a directory.
    """
    where = Path(path)
    try:
        if where.is_dir():
            parts = [(f.relative_to(where).as_posix(), *_digest(f)) for f in sorted(_files(where))]
            lines = "".join(f"{sha}  {name}\n" for name, sha, _ in parts)
            sha, size = hashlib.sha256(lines.encode()).hexdigest(), sum(size for *_, size in parts)
        elif where.is_file():
            sha, size = _digest(where)
        else:
            raise InputError(f"{where} is neither a file nor a directory")
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror}") from error
    return FileHash(os.fspath(path), sha, size)


def _files(folder: Path) -> Iterator[Path]:
    return (f for f in folder.rglob("*") if f.is_file())


def _digest(path: Path) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            size += len(block)
    return digest.hexdigest(), size


def package_versions() -> dict[str, str]:
    """Return the version of Python and of every package of `PACKAGES` that is installed, by name."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
