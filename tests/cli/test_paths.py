from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rewriter.cli.files import write_text
from rewriter.cli.paths import check_output
from rewriter.errors import InputError


def _linked(tmp_path: Path) -> Path:
    (tmp_path / "link.onnx").symlink_to(tmp_path / "model.onnx")
    return tmp_path / "link.onnx"


def _read_only(tmp_path: Path) -> Path:
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked").chmod(0o500)
    return tmp_path / "locked" / "out.onnx"


@pytest.mark.parametrize(
    ("place", "complaint"),
    [
        (lambda d: d / "model.onnx", "is the input"),
        (lambda d: d / "x" / ".." / "model.onnx", "is the input"),
        (_linked, "is the input"),
        (lambda d: d, "is a directory"),
        (lambda d: d / "nowhere" / "out.onnx", "does not exist"),
        pytest.param(
            _read_only, "not writable", marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may write")
        ),
        (lambda d: Path("/dev/null"), "not a regular file"),
        (lambda d: d / ("x" * 300), "File name too long"),
    ],
)
def test_refused_before_work_starts(place: Callable[[Path], Path], complaint: str, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"model")
    (tmp_path / "x").mkdir()
    with pytest.raises(InputError, match=complaint):
        check_output(place(tmp_path), [str(model)])
    assert model.read_bytes() == b"model"


def test_inside_a_model_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="inside the input"):
        check_output(tmp_path / "out.pt2", [str(tmp_path)])


def test_a_new_and_an_existing_file_are_fine(tmp_path: Path) -> None:
    old = tmp_path / "out.onnx"
    old.write_text("old")
    assert check_output(old, [str(tmp_path / "missing.onnx")]) == old
    assert check_output(tmp_path / "new.onnx") == tmp_path / "new.onnx"


def test_text_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    write_text(path, "one")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "one"
    assert os.listdir(tmp_path) == ["r.html"]
    with pytest.raises(InputError, match="cannot be written"):
        write_text(tmp_path / "nowhere" / "r.html", "x")
