"""Damage many files and say which commands misbehave.

    python -m tests.fuzz --count 5000 --seed 0 [--kind onnx-fields] [--keep DIR]

A case is its number: the same one is made again by ``--seed N --count 1``.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from tests.fuzz.hostile_files import REFUSED_FILES
from tests.fuzz.hostile_onnx import HOSTILE_MODELS, REFUSED_MODELS
from tests.fuzz.kinds import KINDS
from tests.fuzz.trial import kind_of, tried, tried_seed


def main() -> int:
    """Run cases; the exit status is 1 if a command did what it must not."""
    args = _arguments()
    if args.hostile is not None:
        return _hostile(args.hostile, args.keep)
    ran, ends, failed = Counter[str](), Counter[int](), 0
    for seed in range(args.seed, args.seed + args.count):
        kind = args.kind or kind_of(seed)
        trial = tried_seed(seed, args.kind, args.keep)
        ran[kind] += 1
        ends.update(end.status for _, end in trial.ended)
        if args.show:
            for command, end in trial.ended:
                sys.stdout.write(f"{trial.name}: {' '.join(command)}: {end.status} {end.err.strip()[:300]}\n")
        if trial.problems:
            failed += 1
            sys.stdout.write(f"{trial.name}\n" + "".join(f"    {p}\n" for p in trial.problems))
        sys.stdout.flush()
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(ran.items()))
    statuses = ", ".join(f"{status}: {n}" for status, n in sorted(ends.items()))
    sys.stdout.write(f"cases {args.count} ({kinds})\nexit status {statuses}\nmisbehaved {failed}\n")
    return int(failed > 0)


def _hostile(part: str, keep: Path | None) -> int:
    """Run the cases made by hand whose names hold a text."""
    every = [(n, m, True) for n, m in {**REFUSED_MODELS, **REFUSED_FILES}.items()]
    every += [(n, m, False) for n, m in HOSTILE_MODELS.items()]
    failed = 0
    for name, make, refused in every:
        if part not in name:
            continue
        trial = tried(name, make, refused, keep)
        for command, end in trial.ended:
            sys.stdout.write(f"{name}: {' '.join(command)}: {end.status} {end.err.strip()[:400]}\n")
        sys.stdout.write("".join(f"    WRONG {p}\n" for p in trial.problems))
        sys.stdout.flush()
        failed += bool(trial.problems)
    return int(failed > 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=200, help="how many cases")
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    parser.add_argument("--kind", choices=sorted(KINDS), default=None, help="of one kind only")
    parser.add_argument("--keep", type=Path, default=None, metavar="DIR", help="copy files that fail there")
    parser.add_argument(
        "--hostile", default=None, metavar="TEXT", help="cases made by hand whose names hold it"
    )
    parser.add_argument("--show", action="store_true", help="print how every command ended")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
