"""Run many random programs and say what became of them.

    python -m tests.random_programs --count 10000 --seed 0 [--log FILE]

With a log, cases that it has are not run again, so that a run can be stopped and continued.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path

from tests.random_programs.case import case
from tests.random_programs.judge import Verdict
from tests.random_programs.report import snippet
from tests.random_programs.shrink import shrunk
from tests.random_programs.summary import Record, summary
from tests.random_programs.workers import records


def main() -> int:
    """Run cases; the exit status is 1 if anything is wrong."""
    args = _arguments()
    warnings.simplefilter("ignore")
    done = _known(args.log)
    fixed = dict(item.split("=", 1) for item in args.fix)
    started, ran = time.monotonic(), 0
    wanted = range(args.seed, args.seed + args.count)

    def report(seed: int, verdict: Verdict) -> None:
        made = case(seed, **fixed)
        simplest = snippet(shrunk(made, verdict.label)) if args.shrink else ""
        sys.stdout.write(f"{made}: " + "\n".join(verdict.problems) + f"\n{simplest}")
        sys.stdout.flush()

    for record in records([n for n in wanted if n not in done], fixed, report):
        done[record.seed] = record
        ran += 1
        if args.log is not None:
            with args.log.open("a", encoding="utf-8") as log:
                log.write(json.dumps(record.to_dict()) + "\n")
    seconds = (time.monotonic() - started) / max(ran, 1)
    found = [done[n] for n in wanted]
    sys.stdout.write(summary(found) + f"\n{ran} cases run, {1000 * seconds:.0f} ms each\n")
    return int(any(r.problems for r in found))


def _known(log: Path | None) -> dict[int, Record]:
    if log is None or not log.exists():
        return {}
    records = (Record.from_dict(json.loads(line)) for line in log.read_text(encoding="utf-8").splitlines())
    return {r.seed: r for r in records}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.random_programs", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--count", type=int, default=300, help="how many cases")
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    parser.add_argument(
        "--log", type=Path, default=None, help="one line of JSON per case; continued if it is there"
    )
    parser.add_argument(
        "--fix", nargs="*", default=[], metavar="NAME=VALUE", help="decisions that are made by hand"
    )
    parser.add_argument(
        "--shrink", action="store_true", help="print the simplest case that fails in the same way"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
