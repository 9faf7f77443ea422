"""Child processes: a crash, a hang or a leak of an exporter costs one entry and nothing else."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from benchmarks.coverage.records import Case

__all__ = ["CAPTURING", "RAISING", "run_all"]

Work = Callable[[Path, Case], None]

CAPTURING = ("benchmarks.coverage.warm",)
RAISING = ("benchmarks.coverage.warm_raising",)
"""Imported once, in the process that children are forked from: that takes longer than what they do."""


def run_all(
    work: Work,
    root: Path,
    cases: Iterable[Case],
    *,
    preload: Sequence[str],
    jobs: int,
    timeout: float,
    memory: int,
) -> Iterator[tuple[Case, str]]:
    """Run each case in a process of its own; yield cases as they end, with why they died or an empty string.

    Parameters
    ----------
    work
        What to do with a case.
    root
        The folder that results are kept in.
    cases
        What to do.
    preload
        Modules to import before a process is forked.
    jobs
        How many processes at a time.
    timeout
        Seconds per case.
    memory
        Bytes of address space per process.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    running: dict[Case, tuple[BaseProcess, float]] = {}
    waiting = iter(cases)
    more = True
    while running or more:
        while more and len(running) < jobs:
            case = next(waiting, None)
            if case is None:
                more = False
                break
            child = context.Process(target=_bounded, args=(work, root, case, memory), daemon=True)
            child.start()
            running[case] = child, time.monotonic()
        for case, (process, start) in list(running.items()):
            process.join(0.01 if len(running) > 1 else 0.05)
            if process.is_alive() and time.monotonic() - start > timeout:
                process.kill()
                process.join()
                del running[case]
                yield case, f"took more than {timeout:.0f} s"
            elif not process.is_alive():
                del running[case]
                code = process.exitcode or 0
                yield (
                    case,
                    ""
                    if code == 0
                    else f"the process died ({'signal' if code < 0 else 'status'} {abs(code)})",
                )


def _bounded(work: Work, root: Path, case: Case, memory: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    work(root, case)
