"""Open a model file or folder as a program."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from rewriter.errors import InputError
from rewriter.program.collector import collector_paused
from rewriter.program.program import Program

__all__ = ["load"]

_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".ckpt", ".pickle")


@collector_paused()
def load(path: str | os.PathLike[str]) -> Program:
    """Open ``.onnx`` (external data beside it), ``.pt2``, or a folder with ``config.json`` and safetensors.

    Raises
    ------
    InputError
        If the file is none of these or is damaged; the message says what was found.
    """
    where = Path(path)
    try:
        mode = where.stat().st_mode
    except OSError as error:
        raise InputError(f"{where}: {error.strerror or error}") from error
    if stat.S_ISDIR(mode):
        from rewriter.program.huggingface import load_directory

        return load_directory(where)
    if not stat.S_ISREG(mode):
        raise InputError(f"{where}: not a regular file")
    suffix = where.suffix.lower()
    if suffix == ".onnx":
        from rewriter.program.onnx import OnnxProgram

        return OnnxProgram.load(where)
    if suffix == ".pt2":
        from rewriter.program.fx import FxProgram

        return FxProgram.load(where)
    if suffix in _PICKLES:
        raise InputError(
            f"{where}: a pickle can run code when it is loaded, so it is refused; "
            "load it in Python and call rewriter.trace(module, args)"
        )
    raise InputError(f"{where}: unknown kind of file; expected .onnx, .pt2, or a folder with config.json")
