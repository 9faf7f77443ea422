"""Measurements, kept between runs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.trained.cases import Case

__all__ = ["Folder", "Measurement"]


@dataclass(frozen=True)
class Measurement:
    """What was measured of one case.

    Parameters
    ----------
    refused
        Why nothing was rewritten, or None.
    sites
        How many attentions were rewritten, of how many.
    quality
        Figures by metric; those of the original under ``original``.
    speed, spread
        How many times faster than the original with fused attention the whole model runs: median of the
        rounds, smallest and largest.
    attention
        How many times faster one attention call runs than the fused one.
    promised
        How many times fewer operations the form's cost counts for it.
    expected
        How many times faster its cost expects it to be, by time.
    memory
        Largest growth of the process while the model runs, relative to the original.
    notes
        Machine and versions.
    """

    refused: str | None = None
    sites: tuple[int, int] = (0, 0)
    quality: Mapping[str, float] = field(default_factory=dict)
    original: Mapping[str, float] = field(default_factory=dict)
    speed: float | None = None
    spread: tuple[float, float] | None = None
    attention: float | None = None
    promised: float | None = None
    expected: float | None = None
    memory: float | None = None
    notes: str = ""


@dataclass(frozen=True)
class Folder:
    """Measurements by case, a JSON file for each."""

    root: Path

    def read(self, case: Case) -> Measurement | None:
        """Return what is known of a case."""
        try:
            found: dict[str, Any] = json.loads(self._path(case).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return Measurement(**found)

    def write(self, case: Case, measurement: Measurement) -> None:
        """Keep what was measured."""
        path = self._path(case)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(asdict(measurement), indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)

    def _path(self, case: Case) -> Path:
        name = f"{case.form}@{case.select}".replace("/", "-")
        return self.root / case.workload / f"{name}.json"
