"""Judging cases in a child process: a runtime that is killed by a model ends the case, not the run."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing.connection import Connection

from tests.random_programs.case import case
from tests.random_programs.judge import Verdict, judged, original_of
from tests.random_programs.summary import Record

__all__ = ["records"]

_CONTEXT = multiprocessing.get_context("fork")


def records(
    seeds: Iterable[int], fixed: Mapping[str, object], report: Callable[[int, Verdict], None]
) -> Iterator[Record]:
    """Judge cases one after the other and yield what became of each.

    Parameters
    ----------
    fixed
        Decisions that are made by hand in all of them.
    report
        Told of every case with problems, in the child.
    """
    left = deque(seeds)
    while left:
        ours, theirs = _CONTEXT.Pipe(duplex=False)
        child = _CONTEXT.Process(target=_judge, args=(theirs, list(left), fixed, report))
        child.start()
        theirs.close()
        while left:
            try:
                record: Record = ours.recv()
            except EOFError:
                break
            left.popleft()
            yield record
        child.join()
        if left:
            yield _died(left.popleft(), fixed)


def _judge(
    results: Connection,
    seeds: Iterable[int],
    fixed: Mapping[str, object],
    report: Callable[[int, Verdict], None],
) -> None:
    for seed in seeds:
        made = case(seed, **fixed)
        verdict = judged(made)
        if verdict.problems:
            report(seed, verdict)
        results.send(Record.of(made, verdict))


def _died(seed: int, fixed: Mapping[str, object]) -> Record:
    """Return the record of a case that ended its process: is it the original that the runtime dies of?"""
    made = case(seed, **fixed)
    child = _CONTEXT.Process(target=original_of, args=(made,))
    child.start()
    child.join()
    if child.exitcode:
        return Record.of(made, Verdict(skipped="the runtime dies of it"))
    return Record.of(made, Verdict(problems=["crash: the process died"]))
