"""Recorded inputs: arrays in files, images, text, or a callable that yields inputs.

======================================  ==========================================================
``inputs.npz``                          one input of the model, arrays by name or by position
``DIR``                                 a directory of ``.npz``
``images:DIR:size=…,mean=…,std=…``      a directory of images: `rewriter.verify.images`
``text:FILE:tokenizer=…``               a text: `rewriter.verify.texts`
``module:callable``                     yields dicts by name or tuples by position, nested as may be
======================================  ==========================================================
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np

from rewriter.errors import InputError
from rewriter.program.program import Program
from rewriter.program.tensors import to_numpy
from rewriter.verify.binding import numpy_dtype
from rewriter.verify.callables import find_callable, is_callable_name
from rewriter.verify.images import image_files, image_inputs
from rewriter.verify.inputs import Case
from rewriter.verify.metrics import is_floating
from rewriter.verify.nesting import by_flat_name, is_nested
from rewriter.verify.npz import read_npz
from rewriter.verify.specs import parse_spec
from rewriter.verify.texts import text_inputs

__all__ = ["Data", "data_cases", "data_count"]

Data = str | os.PathLike[str] | Iterable[Any]
"""A line of the table above, or an iterable of inputs: dicts by name, or tuples by position."""

EXPECTED = "expected .npz, a directory of .npz, images:DIR:…, text:FILE:…, or module:callable"

_POSITIONAL = re.compile(r"arr_(\d+)")


def data_cases(data: Data, program: Program) -> Iterator[Case]:
    """Read inputs and check each against the signature of a program.

    Raises
    ------
    InputError
        When there is nothing to read, or an input is missing, unknown, or has another rank, size or
        kind of number than the model declares.
    """
    count = 0
    for name, inputs in _read(data, program):
        count += 1
        yield Case(name, "data", _checked(name, inputs, program))
    if not count:
        raise InputError(f"data {_shown(data)} holds no inputs; expected at least one")


def data_count(data: Data) -> int | None:
    """Return how many inputs there are, for a bar of progress; None when only reading them tells."""
    if not isinstance(data, str | os.PathLike):
        return len(data) if isinstance(data, Sized) else None
    path = Path(data)
    if path.is_dir():
        return len(list(path.glob("*.npz")))
    return 1 if path.is_file() else None


def _read(data: Data, program: Program) -> Iterator[tuple[str, Any]]:
    if not isinstance(data, str | os.PathLike):
        yield from _numbered("inputs", data)
        return
    path, text = Path(data), os.fspath(data)
    spec = parse_spec(text) if not path.exists() else None
    if spec is not None:
        yield from (image_inputs if spec.kind == "images" else text_inputs)(spec, program)
    elif not path.exists() and is_callable_name(text):
        yield from _numbered(text, _call(text))
    elif path.is_dir():
        yield from _directory(path)
    elif not path.exists():
        raise InputError(f"data {data}: no such file; {EXPECTED}")
    elif path.suffix != ".npz":
        raise InputError(
            f"data {data}: expected a .npz file (numpy.savez), found {path.suffix or 'no suffix'};"
            f" {_advice(path)}"
        )
    else:
        yield path.name, read_npz(path)


def _directory(path: Path) -> Iterator[tuple[str, Any]]:
    files = sorted(path.glob("*.npz"))
    if not files and image_files(path):
        raise InputError(
            f"data {path} is a directory of images: say how they are prepared, such as"
            f" images:{path}:size=224,mean=0.485/0.456/0.406,std=0.229/0.224/0.225"
        )
    for file in files:
        yield file.name, read_npz(file)


def _advice(path: Path) -> str:
    return f"a text is text:{path}:tokenizer=…, images are images:DIR:…"


def _numbered(name: str, items: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    for at, item in enumerate(items):
        yield f"{name}[{at}]", item


def _call(spec: str) -> Iterator[Any]:
    call = find_callable(spec, "data")
    try:
        items = call()
        if not isinstance(items, Iterable) or isinstance(items, Mapping | str):
            raise InputError(
                f"data {spec}: expected an iterable of dicts or tuples, found {type(items).__name__}"
            )
        yield from items
    except InputError:
        raise
    except Exception as error:  # the user's own function raises what it likes
        raise InputError(f"data {spec} failed: {type(error).__name__}: {error}") from error


def _checked(name: str, inputs: Any, program: Program) -> dict[str, np.ndarray]:
    expected = program.graph.inputs
    if isinstance(inputs, Mapping | list | tuple) and is_nested(inputs):
        inputs = by_flat_name(inputs, expected) or inputs
    if isinstance(inputs, Mapping):
        given = dict(inputs)
        order = {k: int(m[1]) for k in given if (m := _POSITIONAL.fullmatch(str(k)))}
        if given and len(order) == len(given) and not order.keys() <= set(expected):
            inputs = [given[k] for k in sorted(given, key=order.__getitem__)]
    else:
        inputs = list(inputs) if isinstance(inputs, Sequence) else [inputs]
    if not isinstance(inputs, Mapping):
        if len(inputs) != len(expected):
            raise InputError(
                f"data {name} has {len(inputs)} inputs; the model has {len(expected)}: {', '.join(expected)}"
            )
        inputs = dict(zip(expected, inputs, strict=True))
    missing = [n for n in expected if n not in inputs]
    unknown = [str(n) for n in inputs if n not in expected]
    if missing:
        extra = f" and has {', '.join(unknown)} instead" if unknown else ""
        raise InputError(
            f"data {name} lacks {', '.join(missing)}{extra}; the model's inputs are {', '.join(expected)}"
        )
    return {n: _fitted(name, n, to_numpy(inputs[n]), program) for n in expected}


def _fitted(case: str, name: str, array: np.ndarray, program: Program) -> np.ndarray:
    value = program.graph.values[name]
    where = f"data {case}, input {name!r}"
    if value.shape is not None:
        if len(value.shape) != array.ndim:
            raise InputError(f"{where} has shape {array.shape}; the model expects {_text(value.shape)}")
        for want, have in zip(value.shape, array.shape, strict=True):
            if want.static and int(want) != have:
                raise InputError(f"{where} has shape {array.shape}; the model expects {_text(value.shape)}")
    if value.dtype is None:
        return array
    dtype = numpy_dtype(value.dtype)
    if dtype == array.dtype:
        return array
    if is_floating(dtype) != is_floating(array.dtype) or array.dtype.kind in "OSU":
        raise InputError(f"{where} is {array.dtype}; the model expects {value.dtype}")
    return array.astype(dtype)


def _text(shape: Sequence[object]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"


def _shown(data: Data) -> str:
    return str(data) if isinstance(data, str | os.PathLike) else "given"
