"""What is known of one architecture in one form, and the folder where it is kept between runs."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Capture", "Folder", "Raised", "Case"]


@dataclass(frozen=True, order=True)
class Case:
    """One architecture in one form."""

    package: str
    architecture: str
    form: str

    def __str__(self) -> str:
        return f"{self.package}/{self.architecture} {self.form}"


@dataclass
class Capture:
    """How building and exporting went.

    Parameters
    ----------
    stage
        Where it ended: ``done``, or ``build``, ``run``, ``export``, ``check`` (ONNX Runtime
        cannot run the exported model), ``not offered``.
    reason
        Why it did not get further.
    expected
        Attentions that were seen while the model ran, or None.
    seconds
        Of the whole.
    parameters
        How many numbers the model has.
    deviation
        How far an ONNX model is from its source in ONNX Runtime, relative to the largest output.
    """

    stage: str
    reason: str = ""
    expected: int | None = None
    seconds: float = 0.0
    parameters: int | None = None
    deviation: float | None = None


@dataclass
class Raised:
    """What raising a captured graph gave.

    Parameters
    ----------
    stage
        ``done``, or where it ended: ``load`` or ``raise``.
    reason
        Why it did not get further.
    nodes
        Of the graph.
    load, seconds
        Time to load the file, and to find and verify the sites.
    sites, refused
        Plain descriptions, in graph order.
    """

    stage: str
    reason: str = ""
    nodes: int = 0
    load: float = 0.0
    seconds: float = 0.0
    sites: list[dict[str, Any]] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)

    @property
    def missed(self) -> list[dict[str, Any]]:
        """Near-misses that may be attention."""
        return [r for r in self.refused if r["missed"]]


@dataclass(frozen=True)
class Folder:
    """Graphs and results, by case."""

    root: Path

    def graph(self, case: Case, suffix: str) -> Path:
        """Return the path of a captured graph."""
        return self._base("graphs", case).with_suffix(suffix)

    def capture(self, case: Case) -> Capture | None:
        """Return what is known of capturing."""
        found = _read(self._base("graphs", case).with_suffix(".json"))
        return None if found is None else Capture(**found)

    def raised(self, case: Case) -> Raised | None:
        """Return what is known of raising."""
        found = _read(self._base("raised", case).with_suffix(".json"))
        return None if found is None else Raised(**found)

    def keep(self, case: Case, record: Capture | Raised) -> None:
        """Write a record; a captured graph that is new makes the old result void."""
        kind = "graphs" if isinstance(record, Capture) else "raised"
        _write(self._base(kind, case).with_suffix(".json"), asdict(record))
        if isinstance(record, Capture):
            self.forget(case)

    def forget(self, case: Case, *, captured: bool = False) -> None:
        """Remove what raising gave, and also what capturing gave."""
        for kind in ("raised", "graphs") if captured else ("raised",):
            self._base(kind, case).with_suffix(".json").unlink(missing_ok=True)

    def _base(self, kind: str, case: Case) -> Path:
        return self.root / kind / case.package / case.architecture / case.form


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)
