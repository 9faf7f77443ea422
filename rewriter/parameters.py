"""Parameters of forms: a value of the declared type, from the text of a command or from code."""

from __future__ import annotations

import os
from numbers import Integral, Real
from types import NoneType
from typing import Any, get_args

__all__ = ["plain_type", "read", "typed"]

_WORDS: dict[type, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def plain_type(hint: Any) -> type:
    """Return the type of a parameter: what may be text is text, None is left out.

    Examples
    --------
    >>> plain_type(int | None), plain_type(int | str)
    (<class 'int'>, <class 'str'>)
    """
    kinds = _kinds(hint)
    return str if str in kinds else kinds[0]


def read(owner: str, name: str, kind: type, text: str) -> Any:
    """Return what a text says.

    Parameters
    ----------
    owner, name
        Whose parameter it is, and which: for the message.
    kind
        Its `plain_type`.
    text
        Without spaces around it.

    Raises
    ------
    ValueError
        When it is of another type.
    """
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        if kind is not bool and (kind is str or (text.isascii() and "_" not in text)):
            return kind(text)
    except ValueError:
        pass
    raise ValueError(f"{owner}: {name} is {text!r}; expected {_WORDS[kind]}")


def typed(owner: str, name: str, hint: Any, value: Any) -> Any:
    """Return a value as it is kept, so that it is printed as its text is read: 1.0 and not 1 for a number.

    Parameters
    ----------
    owner, name
        Whose parameter it is, and which: for the message.
    hint
        Its annotation, such as ``int | str`` or ``float | None``.
    value
        As given in code: numbers of NumPy and paths are taken, too.

    Raises
    ------
    ValueError
        When it is of another type.

    Examples
    --------
    >>> typed("merge", "ratio", float | None, 0)
    0.0
    >>> typed("agent", "agents", int, 4.0)
    Traceback (most recent call last):
    ValueError: agent: agents is 4.0; expected a whole number
    """
    if value is None and NoneType in get_args(hint):
        return None
    kinds = _kinds(hint)
    for kind in kinds:
        found = _as(kind, value)
        if found is not None:
            return found
    expected = " or ".join(_WORDS[kind] for kind in kinds)
    raise ValueError(f"{owner}: {name} is {value!r}; expected {expected}")


def _kinds(hint: Any) -> list[type]:
    return [kind for kind in get_args(hint) if kind is not NoneType] or [hint]


def _as(kind: type, value: Any) -> Any:
    """Return a value as one of this type, or None if it is none."""
    if isinstance(value, bool) or kind is bool:
        return value if isinstance(value, bool) and kind is bool else None
    if kind is int:
        return int(value) if isinstance(value, Integral) else None
    if kind is float:
        return _number(value) if isinstance(value, Real) else None
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    return text if isinstance(text, str) else None


def _number(value: Real) -> float | None:
    try:
        return float(value)
    except OverflowError:
        return None
