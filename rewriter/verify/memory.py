"""How much a process grows while something runs."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

__all__ = ["growth"]

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def growth(call: Callable[[], object]) -> int | None:
    """Return the largest growth of resident memory during a call, in bytes; None where that is not known.

    Needs Linux and glibc: the peak that the kernel keeps is reset before the call. What the process
    already holds and uses again is not seen, so a fair comparison measures each call in a new process.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back, so that it is not used again unseen
        _RESET.write_text("5")
    except (OSError, AttributeError):
        return None
    before = _field("VmRSS")
    call()
    return max(_field("VmHWM") - before, 0)


def _field(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"{_STATUS} has no {name}")
