"""What became of many cases, in a few lines."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.random_programs.case import Case
from tests.random_programs.judge import Verdict

__all__ = ["Record", "summary"]

PROBLEMS = ("wrong commit", "wrong site, not committed", "not found", "crash")
"""Kinds of problems: every other count says what the cases were."""


@dataclass(frozen=True)
class Record:
    """One case that was run."""

    seed: int
    form: str
    dtype: str
    mutation: str
    expected: int
    found: int
    committed: int
    skipped: str
    refused: list[str]
    near_misses: list[str]
    problems: list[str]

    @classmethod
    def of(cls, case: Case, verdict: Verdict) -> Record:
        """Return what is kept of a case."""
        made = case.draws.made
        return cls(
            case.seed,
            case.form,
            str(made["dtype"]),
            str(made["mutation"]),
            case.expected.sites,
            verdict.found,
            verdict.committed,
            verdict.skipped,
            verdict.refused,
            verdict.near_misses,
            verdict.problems,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Record:
        """Return what `to_dict` gave."""
        return cls(**values)


def summary(records: Sequence[Record]) -> str:
    """Return counts of cases, of what was found and committed, of refusals by reason, and of problems."""
    expected, found = sum(r.expected for r in records), sum(r.found for r in records)
    problems = Counter(p.split(":")[0] for r in records for p in r.problems)
    forms = Counter(r.form for r in records)
    lines = [
        f"cases {len(records)} (" + ", ".join(f"{n} {form}" for form, n in sorted(forms.items())) + ")",
        f"attentions generated {expected}, found {found}",
        f"forms committed {sum(r.committed for r in records)}",
        f"cases that the runtime cannot run rightly {sum(bool(r.skipped) for r in records)}",
        *(f"{kind} {problems[kind]}" for kind in PROBLEMS),
    ]
    for title, reasons in (
        ("not committed", [x for r in records for x in r.refused]),
        ("no site", [x for r in records if not r.expected for x in r.near_misses]),
    ):
        lines += [f"{title}: {n} × {reason}" for reason, n in Counter(map(_general, reasons)).most_common()]
    return "\n".join(lines)


def _general(reason: str) -> str:
    """Return a reason without its numbers."""
    return re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "N", reason)[:150]
