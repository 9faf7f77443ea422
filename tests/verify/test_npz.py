from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from rewriter.errors import InputError
from rewriter.verify.npz import read_npz

ARRAYS: dict[str, np.ndarray] = {
    "x": np.arange(24.0).reshape(2, 3, 4),
    "f": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
    "scalar": np.array(1.5, np.float16),
    "none": np.zeros((0, 5), bool),
    "text": np.array(["a", "bc"]),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back(tmp_path: Path, save: object) -> None:
    path = tmp_path / "d.npz"
    save(path, **ARRAYS)  # type: ignore[operator]
    found = read_npz(path)
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)


def member(shape: str, data: bytes, name: str = "x.npy", descr: str = "<f4") -> dict[str, bytes]:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return {name: b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data}


@pytest.mark.parametrize(
    ("members", "says"),
    [
        (member("(2,)", b"\0" * 4), "takes 8 bytes; the file has 4"),
        (member("(2,)", b"\0" * 12), "takes 8 bytes; the file has 12"),
        (member("(1099511627776,)", b""), "takes 4398046511104 bytes"),
        (member("(-2, -4)", b"\0" * 32), "not negative"),
        (member("(1,)", b"\0" * 8, descr="|O"), "Python objects"),
        (member("(1,)", b"\0" * 4, "../x.npy"), "the name of one array"),
        (member("(1,)", b"\0" * 4, "/x.npy"), "the name of one array"),
        (member("(1,)", b"\0" * 4, "x.txt"), "the name of one array"),
        ({"x.npy": b"\x93NUMPY\x03\x00"}, "version 3.0"),
        ({"x.npy": b"no array"}, "no array of numpy.save"),
        ({"x.npy": b""}, "no array of numpy.save"),
    ],
)
def test_what_is_no_plain_array_is_refused(tmp_path: Path, members: dict[str, bytes], says: str) -> None:
    path = tmp_path / "d.npz"
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    with pytest.raises(InputError, match=says) as caught:
        read_npz(path)
    assert "d.npz" in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    out = io.BytesIO()
    np.save(out, ARRAYS["x"])
    path.write_bytes(out.getvalue())
    with pytest.raises(InputError, match="not a zip archive"):
        read_npz(path)
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(InputError, match="is a pipe; expected"):
        read_npz(tmp_path / "pipe.npz")


def test_a_file_that_shrinks_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x=np.zeros(1 << 20))
    read = np.lib.format.read_magic

    def cut(stream: io.BufferedIOBase) -> tuple[int, int]:
        os.truncate(path, 1 << 16)
        return read(stream)

    monkeypatch.setattr(np.lib.format, "read_magic", cut)
    with pytest.raises(InputError, match="damaged") as caught:
        read_npz(path)
    assert "\n" not in str(caught.value)
