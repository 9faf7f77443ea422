"""Weights are read from files that are mapped into memory: what happens when one shrinks meanwhile.

Whoever reads such a page gets SIGBUS, which ends a process without a word, wherever it is: often inside a
runtime, where no exception can be raised. So the process still ends, but says why.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys

from rewriter.cli.output import emitted

__all__ = ["report_truncation"]

MESSAGE = "a file that is being read was cut short meanwhile (or its disk failed); run the command again"

_DEFAULT = 0  # SIG_DFL


def _ended(number: int) -> None:
    _signal(number, _DEFAULT)  # a second one ends the process at once
    os.write(2, f"error: {MESSAGE}\n".encode())
    if "--json" in sys.argv and not emitted():
        os.write(1, (json.dumps({"error": MESSAGE}) + "\n").encode())
    os._exit(2)


_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)(_ended)


def _signal(number: int, handler: object) -> None:
    # a handler of Python's own runs after the instruction that failed, which never ends
    ctypes.CDLL(None).signal(number, handler)


def report_truncation() -> None:
    """End the process with one line and status 2 where a mapped file has lost what is read; POSIX only."""
    if hasattr(signal, "SIGBUS"):
        _signal(signal.SIGBUS, _HANDLER)
