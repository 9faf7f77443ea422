"""Files of fitted weights that are not what they should be: a reason in one line, and no waiting."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import rewriter
from rewriter.errors import InputError
from rewriter.kernels.agent.form import Agent
from rewriter.kernels.gated.form import Gated
from rewriter.kernels.linear.form import Linear
from rewriter.kernels.softmax.fitted import read_arrays
from rewriter.selectors import Selector
from tests.kernels.operands import site
from tests.kernels.padded import Padded


def member(path: Path, name: str, held: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, held)


def header(shape: tuple[int, ...]) -> bytes:
    """Return an array of that shape as `numpy.save` writes it, with 64 bytes of it."""
    text = str({"descr": "<f4", "fortran_order": False, "shape": shape}).encode()
    text += b" " * (63 - (10 + len(text)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(64)


FILES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("weights"),
    "a folder": lambda path: path.mkdir(),
    "a pipe": lambda path: os.mkfifo(path),
    "a pickle": lambda path: path.write_bytes(pickle.dumps({"weight": 1})),
    "one array": lambda path: np.save(path.open("wb"), np.ones((4, 16), np.float32)),
    "objects": lambda path: np.savez(path, weight=np.array([[None]])),
    "no array": lambda path: member(path, "weight", b"abc"),
    "cut short": lambda path: member(path, "weight.npy", b"\x93NUMPY"),
    "fewer numbers than it says": lambda path: member(path, "weight.npy", header((4, 16))),
    "more than memory holds": lambda path: member(path, "weight.npy", header((10**6, 10**9))),
    "negative sizes": lambda path: member(path, "weight.npy", header((-4, 16))),
}


@pytest.mark.parametrize("write", FILES.values(), ids=list(FILES))
def test_what_is_no_archive_of_arrays_is_refused(write: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "fitted.npz"
    write(path)
    forms = (Gated(weights=path), Linear("hedgehog", path), Agent(4, weights=path))  # type: ignore[arg-type]
    for form in forms:
        why = form.why_not(site())
        assert why is not None and f"weights {path}: not a readable .npz of plain arrays (" in why
        assert "\n" not in why


@pytest.mark.parametrize("write", FILES.values(), ids=list(FILES))
def test_rewriting_ends_before_it_begins(write: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "fitted.npz"
    write(path)
    q = torch.randn(1, 2, 6, 8)
    program = rewriter.trace(Padded(-1e4), (q, torch.ones(1, 6, dtype=torch.int64)))
    with pytest.raises(InputError, match=re.escape(str(path))):
        rewriter.rewrite(program, [(Gated(weights=str(path)), Selector())])


def test_arrays_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "fitted.npz"
    weight = np.asfortranarray(np.arange(12, dtype=np.float16).reshape(3, 4))
    np.savez_compressed(path, weight=weight, bias=np.ones(3))
    found = read_arrays(str(path), {"weight": 2}, {"bias": 1})
    assert found.keys() == {"weight", "bias"} and found["weight"].dtype == np.float16
    np.testing.assert_array_equal(found["weight"], weight)
