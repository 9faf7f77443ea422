from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rewriter.errors import InputError
from rewriter.program.regular import open_regular, read_text


def test_text_comes_back(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("é\n", encoding="utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "t")
    assert read_text(tmp_path / "link", "a text") == "é\n"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: os.mkfifo(path), "is a pipe"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device"),
        (lambda path: path.symlink_to(path), "symbolic links"),
        (lambda path: path.write_bytes(b"\xff"), "byte 0 is not UTF-8"),
        (lambda path: path.write_bytes(b"12345"), "has 5 bytes; expected a plan of 4 at most"),
    ],
    ids=["missing", "folder", "pipe", "device", "loop", "binary", "large"],
)
def test_anything_else_is_refused(tmp_path: Path, make: Callable[[Path], object], says: str) -> None:
    make(tmp_path / "p")
    with pytest.raises(InputError, match=says):
        read_text(tmp_path / "p", "a plan", 4)


def test_names_that_no_file_can_have() -> None:
    with pytest.raises(InputError, match="null"):
        open_regular("a\0b", "a plan")
