"""Translation validation of programs that write: whole runs, one after the other, old and new."""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from rewriter.errors import RewriterError
from rewriter.rules.check import Check
from rewriter.rules.rerun import compared, moved, worse
from rewriter.verify.inputs import generated_cases, random_case
from rewriter.verify.noise import perturbed_program
from rewriter.verify.running import can_run, first_line, runtime_errors

if TYPE_CHECKING:
    from rewriter.program.program import Arrays, Program

__all__ = ["keeps_state", "why_not_in_turn"]

CASES = 2
"""How many combinations of sizes are tried."""


def keeps_state(original: Program, changed: Program, seed: int = 0) -> Check:
    """Run both programs twice in a row, and compare what they return and what they have written at the end.

    A rewritten value may be right and come too late: one that shares memory with a buffer changes when the
    buffer is written. What may differ is as for `rewriter.rules.rerun.rerun`; the weights are moved in their
    last bits, too.

    Parameters
    ----------
    original, changed
        Programs traced from PyTorch.
    seed
        Of the numbers.

    Returns
    -------
    Check
        Of the worst value.
    """
    from rewriter.program.fx import FxProgram
    from rewriter.program.fx_state import run_in_turn

    near = perturbed_program(original, seed)
    assert isinstance(original, FxProgram) and isinstance(changed, FxProgram) and isinstance(near, FxProgram)
    failures: tuple[type[Exception], ...] = (RewriterError, *runtime_errors())
    worst: Check | None = None
    for tag, first, second in _pairs(original, seed):
        try:
            old = run_in_turn(original, [first, second])
            response = run_in_turn(near, [moved(first, seed), moved(second, seed)])
        except failures as error:
            return _failed(f"the original cannot be run twice: {first_line(error)}")
        new = run_in_turn(changed, [first, second])
        if old.keys() != new.keys():
            return _failed("other values are returned or written")
        for name, want in old.items():
            found = compared(f"in two runs in a row on {tag}, {name}", want, new[name], response[name])
            if not found.ok:
                return found
            worst = worse(worst, found)
    return worst or _failed("the original runs on no generated input")


def why_not_in_turn(program: Program, made: Program, seed: int) -> str | None:
    """Return why a program that writes does not do as before when it is run again and again, or None."""
    if made is program or not program.graph.writes:
        return None
    try:
        return keeps_state(program, made, seed).reason
    except RewriterError as error:
        return f"it could not be run: {error}"
    except runtime_errors() as error:
        return f"it could not be run: {first_line(error)}"


def _failed(reason: str) -> Check:
    return Check(False, reason, np.inf, 0.0, 0.0)


def _pairs(program: Program, seed: int) -> list[tuple[str, Arrays, Arrays]]:
    """Return inputs for two runs, of the same sizes each time."""
    runs = partial(can_run, program)
    cases = (c for c in generated_cases(program, seed, runs) if c.group == "random" and runs(c.inputs))
    return [
        (case.name, case.inputs, random_case(program, case.sizes, seed + 1).inputs)
        for case in islice(cases, CASES)
    ]
