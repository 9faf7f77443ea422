"""Recorded inputs: a ``.npz`` file, a directory of them, or ``module:callable`` that yields inputs."""

from __future__ import annotations

import importlib
import os
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rewriter.errors import InputError
from rewriter.program.program import Program
from rewriter.program.tensors import to_numpy
from rewriter.verify.binding import numpy_dtype
from rewriter.verify.inputs import Case
from rewriter.verify.metrics import is_floating

__all__ = ["Data", "data_cases"]

Data = str | os.PathLike[str] | Iterable[Any]
"""A path, ``module:callable``, or an iterable of inputs (dicts by name, or tuples by position)."""

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
    for name, inputs in _read(data):
        count += 1
        yield Case(name, "data", _checked(name, inputs, program))
    if not count:
        raise InputError(f"data {_shown(data)} holds no inputs; expected at least one")


def _read(data: Data) -> Iterator[tuple[str, Any]]:
    if isinstance(data, str | os.PathLike):
        path = Path(data)
        if isinstance(data, str) and not path.exists() and _is_callable_name(data):
            yield from _numbered(data, _call(data))
        elif path.is_dir():
            for file in sorted(path.glob("*.npz")):
                yield file.name, _npz(file)
        elif not path.exists():
            raise InputError(
                f"data {data}: no such file; expected .npz, a directory of .npz, or module:callable"
            )
        elif path.suffix != ".npz":
            raise InputError(
                f"data {data}: expected a .npz file (numpy.savez), found {path.suffix or 'no suffix'}"
            )
        else:
            yield path.name, _npz(path)
    else:
        yield from _numbered("inputs", data)


def _numbered(name: str, items: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    for at, item in enumerate(items):
        yield f"{name}[{at}]", item


def _is_callable_name(text: str) -> bool:
    module, colon, function = text.partition(":")
    return bool(colon) and function.isidentifier() and all(p.isidentifier() for p in module.split("."))


def _call(spec: str) -> Iterable[Any]:
    module_name, _, function = spec.partition(":")
    # a console script does not look in the current directory, where a user's own module is
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(f"data {spec}: cannot import {module_name}: {error}") from error
    call = getattr(module, function, None)
    if not callable(call):
        raise InputError(f"data {spec}: {module_name} has no callable {function!r}")
    items = call()
    if not isinstance(items, Iterable) or isinstance(items, Mapping | str):
        raise InputError(
            f"data {spec}: expected an iterable of dicts or tuples, found {type(items).__name__}"
        )
    return items


def _npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"data {path}: not a readable .npz of plain arrays ({error})") from error


def _checked(name: str, inputs: Any, program: Program) -> dict[str, np.ndarray]:
    expected = program.graph.inputs
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
            f"data {name} lacks input {', '.join(missing)}{extra}; the model has {', '.join(expected)}"
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
