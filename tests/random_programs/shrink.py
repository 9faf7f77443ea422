"""Make a failing case simpler: every decision that does not matter becomes the simplest one."""

from __future__ import annotations

from tests.random_programs.case import Case, case
from tests.random_programs.judge import judged

__all__ = ["shrunk"]


def shrunk(failing: Case, label: str, limit: int = 600) -> Case:
    """Return a case that fails with the same label, with as many of the simplest decisions as can be.

    Parameters
    ----------
    limit
        How many simpler cases are tried.
    """
    best = failing
    tried = 0
    changed = True
    while changed:
        changed = False
        for name, value in list(best.draws.made.items()):
            if tried >= limit:
                return _told(best)
            simplest = best.draws.simplest.get(name)
            if value == simplest or name not in best.draws.made:
                continue
            tried += 1
            simpler = _made(best, {name: simplest})
            if judged(simpler).label == label:
                best, changed = simpler, True
    return _told(best)


def _made(base: Case, more: dict[str, object]) -> Case:
    made = case(base.seed, **{**base.fixed, **more})
    return made if made.fixed.keys() <= made.draws.made.keys() else case(base.seed, **_used(made))


def _used(made: Case) -> dict[str, object]:
    return {name: value for name, value in made.fixed.items() if name in made.draws.made}


def _told(made: Case) -> Case:
    """Return the same case without fixed decisions that would fall the same way."""
    fixed = dict(made.fixed)
    for name in made.fixed:
        rest = {n: v for n, v in fixed.items() if n != name}
        if case(made.seed, **rest).draws.made == made.draws.made:
            fixed = rest
    return case(made.seed, **fixed)
