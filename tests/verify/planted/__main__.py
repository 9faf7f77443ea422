"""Plant faults in trained models and say which are found, and which site is blamed.

python -m tests.verify.planted minilm-l6 ppocr-v4-rec          # every fault, at a site in the middle
python -m tests.verify.planted --epsilon minilm-l6             # the smallest change that is seen
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from operator import mul
from pathlib import Path

import rewriter
from rewriter import models_zoo
from rewriter.program.program import Program
from rewriter.sites.site import AttentionSite
from rewriter.verify.compare import validate
from rewriter.verify.inputs import Case
from rewriter.verify.lockstep import per_site
from tests.verify.planted.plant import FAULTS, first_case, with_epsilon

TIMES = (1.1, 2, 10, 100, 1000, 10_000)
"""What an epsilon is multiplied by."""


def main() -> None:
    """Print a table for every model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--epsilon", action="store_true", help="change only the epsilon before a site")
    parser.add_argument("--faults", nargs="*", default=list(FAULTS), choices=list(FAULTS), metavar="FAULT")
    args = parser.parse_args()
    for name in args.models:
        program = _model(name)
        case = first_case(program)
        if args.epsilon:
            _epsilons(name, program, case)
        else:
            _faults(name, program, case, args.faults)


def _model(name: str) -> Program:
    """Return a model of the zoo; one that is traced has the sizes of its example, as planted faults do."""
    found = models_zoo.load(name.removeprefix("zoo:"))
    if isinstance(found.model, Path):
        return rewriter.load(found.model)
    return rewriter.trace(found.model, found.inputs)


def _faults(name: str, program: Program, case: Case, faults: Sequence[str]) -> None:
    site = program.sites[len(program.sites) // 2]
    _say(f"\n| {name}, {site.id} | found | blamed |\n| --- | --- | --- |")
    for fault in faults:
        faulty = FAULTS[fault](program, site)
        _say(f"| {fault} | {_found(program, faulty, case)} | {_blamed(program, faulty, case)} |")


def _epsilons(name: str, program: Program, case: Case) -> None:
    _say(f"\n| {name}, before | smallest change of epsilon seen end to end | blamed on it |")
    _say("| --- | --- | --- |")
    for site in (program.sites[0], program.sites[len(program.sites) // 2], program.sites[-1]):
        found, blamed = _smallest_found(program, site, case), _smallest_blamed(program, site, case)
        _say(f"| {site.id} | {found} | {blamed} |")


def _smallest_found(program: Program, site: AttentionSite, case: Case) -> str:
    return _smallest(program, site, lambda faulty: _found(program, faulty, case) == "yes")


def _smallest_blamed(program: Program, site: AttentionSite, case: Case) -> str:
    return _smallest(program, site, lambda faulty: _blamed(program, faulty, case) == site.id)


def _smallest(program: Program, site: AttentionSite, seen: Callable[[Program], bool]) -> str:
    planted = ((n, with_epsilon(partial(mul, n), program, site)) for n in TIMES)
    return next((f"{n:g} times" for n, faulty in planted if seen(faulty)), "none")


def _found(program: Program, faulty: Program, case: Case) -> str:
    sizes = {name: [number] for name, number in case.sizes.items()}
    return "no" if validate(program, faulty, sizes=sizes).ok else "yes"


def _blamed(program: Program, faulty: Program, case: Case) -> str:
    found = per_site(program, faulty, islice([case], 1), statistics=False)
    return ", ".join(found.blamed) or "none"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
