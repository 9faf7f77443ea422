"""Build small models of many architectures, capture each in four forms, raise and verify them.

python -m benchmarks.coverage                        # what is not known yet, then docs/coverage.md
python -m benchmarks.coverage --only 'vit*' --jobs 2 # these, and their table
python -m benchmarks.coverage --table                # only the table again
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from benchmarks.coverage.children import CAPTURING, RAISING, run_all
from benchmarks.coverage.forms import FORMS
from benchmarks.coverage.libraries import LIBRARIES, architectures
from benchmarks.coverage.page import Entry, page
from benchmarks.coverage.records import Capture, Case, Folder, Raised
from benchmarks.coverage.work import advance

PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"


def main() -> None:
    """Capture what is not yet captured, raise what is not yet raised, and print a line for each."""
    args = _arguments()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    folder = Folder(args.cache)
    cases = [
        Case(library, name, form)
        for library in args.libraries
        for name in architectures(library)
        if any(fnmatch.fnmatchcase(name, p) for p in args.only)
        for form in args.forms
    ]
    if not cases:
        sys.exit(f"no architecture of {', '.join(args.libraries)} matches {' '.join(args.only)}")
    for case in cases:
        _forget(folder, case, args.again)
    todo = [c for c in cases if not args.table and not _finished(folder, c)]
    if args.again == "raise":
        todo = [c for c in todo if folder.capture(c) is not None]
    ended = run_all(
        advance,
        folder.root,
        todo,
        preload=RAISING if args.again == "raise" else CAPTURING,
        jobs=args.jobs,
        timeout=args.timeout,
        memory=args.memory << 20,
    )
    for number, (case, death) in enumerate(ended, 1):
        if death and folder.capture(case) is None:
            folder.keep(case, Capture("export", death))
        elif death:
            folder.keep(case, Raised("raise", death))
        print(f"{number}/{len(todo)} {case}: {_line(folder, case)}", flush=True)
    text = _table(folder, cases)
    if args.write is not None:
        args.write.write_text(text, encoding="utf-8")
    print(text)


def _table(folder: Folder, cases: Sequence[Case]) -> str:
    known = {c: got for c in cases if (got := folder.capture(c)) is not None}
    entries = [Entry(case, got, folder.raised(case)) for case, got in known.items()]
    return page(entries, _versions(), [c for c in cases if c not in known])


def _versions() -> str:
    names = ("torch", "transformers", "timm", "onnxscript")
    known = {n: version(n) for n in names if find_spec(n) is not None}
    return "With " + ", ".join(f"{name} {number}" for name, number in known.items()) + "."


def _forget(folder: Folder, case: Case, again: str | None) -> None:
    """Remove what is to be done again."""
    known = folder.capture(case)
    if again == "all" or (
        again == "failed" and known is not None and known.stage not in ("done", "not offered")
    ):
        folder.forget(case, captured=True)
    elif again == "raise":
        folder.forget(case)


def _finished(folder: Folder, case: Case) -> bool:
    known = folder.capture(case)
    return known is not None and (known.stage != "done" or folder.raised(case) is not None)


def _line(folder: Folder, case: Case) -> str:
    known, raised = folder.capture(case), folder.raised(case)
    if known is None or known.stage != "done" or raised is None:
        return "nothing" if known is None else f"{known.stage}: {known.reason}"
    if raised.stage != "done":
        return f"{raised.stage}: {raised.reason}"
    return (
        f"{len(raised.sites)} of {known.expected} sites, "
        f"{len(raised.missed)} missed, {len(raised.refused)} refused, "
        f"{raised.nodes} nodes, captured in {known.seconds:.1f} s, loaded in {raised.load:.1f} s, "
        f"raised in {raised.seconds:.1f} s"
    )


def _arguments() -> argparse.Namespace:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rewriter" / "coverage"
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coverage", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--only", nargs="+", default=["*"], metavar="PATTERN", help="architectures, as file patterns"
    )
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=LIBRARIES)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--timeout", type=float, default=180, help="seconds per graph")
    parser.add_argument("--memory", type=int, default=8192, help="MiB of address space per graph")
    parser.add_argument("--cache", type=Path, default=cache, help="folder of captured graphs and results")
    parser.add_argument(
        "--write", type=Path, metavar="PAGE", help=f"where to write the table (the whole one: {PAGE.name})"
    )
    parser.add_argument(
        "--again",
        choices=("raise", "failed", "all"),
        help="do again: raising what is captured (and nothing else), failed captures, or all",
    )
    parser.add_argument("--table", action="store_true", help="run nothing: write what is known")
    args = parser.parse_args()
    if (
        args.write is None
        and args.only == ["*"]
        and args.libraries == LIBRARIES
        and len(args.forms) == len(FORMS)
    ):
        args.write = PAGE
    return args


if __name__ == "__main__":
    main()
