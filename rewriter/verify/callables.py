"""``module:callable``: a function of the user's, by name."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from rewriter.errors import InputError

__all__ = ["find_callable", "is_callable_name"]


def is_callable_name(text: str) -> bool:
    """Whether a text has the form ``package.module:callable``.

    >>> is_callable_name("calibration:inputs"), is_callable_name("a/b.npz"), is_callable_name("text:")
    (True, False, False)
    """
    module, colon, function = text.partition(":")
    return bool(colon) and function.isidentifier() and all(p.isidentifier() for p in module.split("."))


def find_callable(spec: str, what: str) -> Callable[..., Any]:
    """Import what ``module:callable`` names; modules in the current directory are found, too.

    Parameters
    ----------
    spec
        ``module:callable``.
    what
        What it is for, as an error says it: ``data``, ``task``.

    Raises
    ------
    InputError
        When there is no such module, it cannot be imported, or it has no such callable.
    """
    module_name, _, function = spec.partition(":")
    # a console script does not look in the current directory, where a user's own module is
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a module of the user's raises what it likes
        raise InputError(f"{what} {spec}: cannot import {module_name}: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise InputError(f"{what} {spec}: {module_name} has no callable {function!r}")
    call: Callable[..., Any] = found
    return call
