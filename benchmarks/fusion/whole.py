"""What `python -m benchmarks.exact` measured of whole models, as rows of a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["KEPT", "Row", "line", "rows"]

KEPT = Path(__file__).parent / "exact.json"


@dataclass(frozen=True)
class Row:
    """What was measured of one model at one size in one runtime.

    Parameters
    ----------
    model, size, runtime
        Which; ``baseline`` names what everything is compared with.
    milliseconds
        Of the baseline.
    faster
        By name: how many times faster than the baseline, and the range of the rounds.
    applied
        How many values each rule rewrote.
    """

    model: str
    size: int
    runtime: str
    baseline: str
    milliseconds: float
    faster: Mapping[str, tuple[float, float, float]]
    applied: Mapping[str, int]


def rows() -> list[Row]:
    """Return what is kept."""
    if not KEPT.exists():
        return []
    found: list[dict[str, Any]] = json.loads(KEPT.read_text(encoding="utf-8"))
    return [Row(**entry) for entry in found]


def line(row: Row) -> str:
    """Return a row of a table in Markdown."""
    cells = [f"{key} {a:.2f} ({low:.2f}–{high:.2f})" for key, (a, low, high) in row.faster.items()]
    done = ", ".join(f"{n} {rule}" for rule, n in sorted(row.applied.items())) or "nothing"
    where = f"| {row.model} | {row.size:,} | {row.runtime} |"
    times = "; ".join(cells) or "the same file"
    return f"{where} {row.baseline}, {row.milliseconds:.3g} ms | {times} | {done} |"
