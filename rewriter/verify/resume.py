"""A record of finished work: a run that was interrupted goes on where it stopped, with the same result."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rewriter.errors import InputError

__all__ = ["Record", "open_record"]

KIND = "rewriter record"
VERSION = 1

LARGEST = 1 << 28
"""Bytes of a record that is read."""


class Record:
    """Values by name, each written down when it is known.

    The file holds one JSON object per line and only ever grows, so that whatever ends the process leaves a
    record: a last line that is torn is dropped.

    Parameters
    ----------
    path
        The file; None keeps nothing.
    known
        What was read from it.
    restarted
        Whether there was a record of something else, which was thrown away.
    """

    def __init__(
        self, path: Path | None, file: TextIO | None = None, known: Mapping[str, Any] | None = None
    ) -> None:
        self.path = path
        self.restarted = False
        self._file = file
        self._known = dict(known or {})

    @property
    def kept(self) -> bool:
        """Whether anything is written down."""
        return self._file is not None

    def __len__(self) -> int:
        """Return how many values are known."""
        return len(self._known)

    def get(self, name: str) -> Any:
        """Return what was recorded under a name, or None."""
        return self._known.get(name)

    def put(self, name: str, value: Any) -> None:
        """Write a value down: numbers, texts, lists and dicts.

        Raises
        ------
        InputError
            When the disk is full.
        """
        if self._file is None:
            return
        try:
            self._file.write(json.dumps([name, value]) + "\n")
            self._file.flush()
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror}") from error

    def damaged(self, name: str) -> InputError:
        """Return the error for a value that is not what was written."""
        return InputError(
            f"{self.path}: what is recorded of {name} is damaged; delete the file to start again"
        )

    def finish(self) -> None:
        """Remove the file: the work is done."""
        self.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file and leave it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Record:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()


def open_record(path: str | os.PathLike[str] | None, key: str) -> Record:
    """Open the record of some work, or begin one.

    Parameters
    ----------
    path
        The file; None for a record that keeps nothing.
    key
        What the work is: a record of anything else is not continued but begun again.

    Raises
    ------
    InputError
        When the file is something else than a record, which is never overwritten, or cannot be written.
    """
    if path is None:
        return Record(None)
    where = Path(path)
    try:
        if where.exists() and not where.is_file():
            raise InputError(f"{where} is not a regular file; expected a record to resume, or a new file")
        found = _read(where) if where.exists() else None
        mine = found is not None and found[0] == key
        if found is None or not mine:
            _write(where, [json.dumps({"kind": KIND, "version": VERSION, "key": key})])
        elif found[2]:
            _write(where, found[2])
        record = Record(where, where.open("a", encoding="utf-8"), found[1] if found and mine else None)
        record.restarted = found is not None and not mine
    except OSError as error:
        raise InputError(f"{where} cannot be used to resume: {error.strerror}") from error
    return record


def _write(path: Path, lines: list[str]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path) -> tuple[str, dict[str, Any], list[str]]:
    """Return the key, the values, and the whole lines when the last one is torn."""
    wrong = InputError(f"{path} is no record of this version to resume; choose another file, or delete it")
    if path.stat().st_size > LARGEST:
        raise wrong
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        torn = lines.pop() != ""
        head = json.loads(lines[0])
        if head["kind"] != KIND or head["version"] != VERSION:
            raise wrong
        known: dict[str, Any] = {}
        for line in lines[1:]:
            name, value = json.loads(line)
            known[str(name)] = value
        return str(head["key"]), known, lines if torn else []
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        raise wrong from None
