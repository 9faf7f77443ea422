"""A command in a process of its own, with limits of processor time, memory and patience."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MEMORY", "PATIENCE", "SECONDS", "Ended", "call"]

SECONDS = 10
"""Processor seconds that a command may take."""

PATIENCE = 200.0
"""Seconds after which a command that waits for something is ended."""

MEMORY = 2 << 30
"""Bytes of address space that a command may ask for, besides what the libraries hold."""

_CONTEXT = multiprocessing.get_context("forkserver")
# what takes long to import is imported once
_CONTEXT.set_forkserver_preload(["tests.fuzz.worker", "tests.fuzz.warm"])


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Parameters
    ----------
    status
        Exit status; minus the number of the signal if one killed it.
    out, err
        What it wrote, libraries included.
    """

    status: int
    out: str
    err: str

    @property
    def killed(self) -> str:
        """What killed it, or an empty text."""
        if self.status >= 0:
            return ""
        name = signal.Signals(-self.status).name
        limits = {"SIGXCPU": f"took more than {SECONDS} s", "SIGKILL": f"hung for {PATIENCE:.0f} s"}
        return limits.get(name, f"died of {name}")


def call(arguments: Sequence[str], folder: Path, scratch: Path) -> Ended:
    """Run ``rewriter`` with arguments in a folder.

    Parameters
    ----------
    scratch
        Another folder, for what it prints.
    """
    out, err = scratch / "out", scratch / "err"
    child = _CONTEXT.Process(target=_limited, args=(list(arguments), str(folder), str(out), str(err)))
    child.start()
    child.join(PATIENCE)
    if child.is_alive():
        child.kill()
        child.join()
    read = [p.read_text(encoding="utf-8", errors="replace") for p in (out, err)]
    return Ended(int(child.exitcode or 0), *read)


def _limited(arguments: list[str], folder: str, out: str, err: str) -> None:
    for path, stream in ((out, 1), (err, 2)):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, stream)
        os.close(handle)
    os.chdir(folder)
    with open("/proc/self/statm", encoding="ascii") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.argv = ["rewriter", *arguments]
    os.environ["COLUMNS"] = "100"
    os.environ.pop("REWRITER_DEBUG", None)
    os.environ["REWRITER_PATIENCE"] = "0.3"
    from rewriter.cli import app

    app.run()
