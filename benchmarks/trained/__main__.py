"""Measure every form on trained models: quality, attention alone, end to end, memory.

    python -m benchmarks.trained                                 # what is not known yet, then the pages
    python -m benchmarks.trained --models minilm --only '*linear*' --again
    python -m benchmarks.trained --table                         # only the pages again

What is measured is kept; a run continues where the last one ended, and writes docs/results. Where there is a
CUDA device, it ends in the tables of `benchmarks.kernels`.
"""

from __future__ import annotations

import argparse
import fnmatch
import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import kernels
from benchmarks.trained.cases import FAMILIES, Case, cases
from benchmarks.trained.measure import expect, measure
from benchmarks.trained.page import page
from benchmarks.trained.plot import plot
from benchmarks.trained.records import Folder
from benchmarks.trained.workloads import WORKLOADS

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def main() -> None:
    """Measure what is not yet measured, and write a page for each model."""
    args = _arguments()
    folder = Folder(args.cache)
    wanted = [
        case
        for name in WORKLOADS
        if name.partition("-")[0] in args.models
        for case in cases(name)
        if any(fnmatch.fnmatchcase(str(case), pattern) for pattern in args.only)
    ]
    if not wanted:
        sys.exit(f"no case of {', '.join(args.models)} matches {' '.join(args.only)}")
    for workload in dict.fromkeys(case.workload for case in wanted):
        mine = [case for case in wanted if case.workload == workload]
        if args.expect:
            expect(folder, mine)
        elif not args.table:
            todo = [case for case in mine if args.again or folder.read(case) is None]
            _measure(workload, todo, args)
    for model in args.models:
        _write(model, folder)
    if torch.cuda.is_available() and not (args.table or args.expect):
        kernels.tables()


def _measure(workload: str, todo: Sequence[Case], args: argparse.Namespace) -> None:
    if not todo:
        return
    # a process of its own for each workload, so that one does not find another's memory
    process = multiprocessing.get_context("spawn").Process(
        target=measure, args=(Folder(args.cache), todo, args.rounds, args.threads)
    )
    process.start()
    process.join()
    if process.exitcode:
        print(f"{workload}: the process ended with status {process.exitcode}", flush=True)


def _write(model: str, folder: Folder) -> None:
    every = [case for name in WORKLOADS if name.partition("-")[0] == model for case in cases(name)]
    found = {case: known for case in every if (known := folder.read(case)) is not None}
    if not found:
        return
    metric = WORKLOADS[next(iter(found)).workload]().metric
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{model}.md").write_text(page(model, found, metric, len(every)), encoding="utf-8")
    plot(found, metric, RESULTS / f"{model}.svg")
    print(f"docs/results/{model}.md: {len(found)} of {len(every)} cases")


def _arguments() -> argparse.Namespace:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rewriter" / "trained"
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trained", description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=sorted(FAMILIES), default=sorted(FAMILIES))
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="cases, as file patterns")
    parser.add_argument("--again", action="store_true", help="measure what is already known, too")
    parser.add_argument("--table", action="store_true", help="measure nothing: write what is known")
    parser.add_argument("--expect", action="store_true", help="measure nothing: count expected speeds again")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=cache, help="folder of measurements")
    return parser.parse_args()


if __name__ == "__main__":
    main()
