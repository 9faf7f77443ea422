"""Which forms are measured on which model, each at three strengths, mildest first."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

__all__ = ["HALF", "Case", "cases"]

HALF = "best=0.5"
"""The half of the layers where a form changes the output of the attention least."""


@dataclass(frozen=True, order=True)
class Case:
    """One form on a part of the layers of one workload.

    Parameters
    ----------
    workload
        A name of `benchmarks.trained.workloads.WORKLOADS`.
    family
        The curve that it belongs to.
    form
        As after ``--apply``.
    select
        ``all`` or `HALF`.
    """

    workload: str
    family: str
    form: str
    select: str

    def __str__(self) -> str:
        return f"{self.workload} {self.form}@{self.select}"


_GRID = "grid=auto"

_IMAGES: dict[str, tuple[str, ...]] = {
    "window": tuple(f"window:window={n},sinks=1,{_GRID}" for n in (25, 13, 7)),
    "agent": tuple(f"agent:agents={n},protect=1,{_GRID}" for n in (100, 49, 16)),
    "nystrom": tuple(f"nystrom:landmarks={n},protect=1,{_GRID}" for n in (196, 100, 49)),
    "linear": tuple(f"linear:feature_map={m}" for m in ("taylor2", "elu", "relu")),
    "clipped": tuple(f"clipped:gamma={g}" for g in (-0.0003, -0.003, -0.03)),
    "pooled": tuple(f"pooled:window={n},pool=4,sinks=1,{_GRID}" for n in (24, 16, 8)),
    "merge": tuple(f"merge:ratio={r},protect=1" for r in (0.125, 0.25, 0.5)),
    "merge, through": tuple(f"merge:keep=cos>={c},protect=1" for c in (0.995, 0.99, 0.95)),
}

_TEXT: dict[str, tuple[str, ...]] = {
    "window": tuple(f"window:window={{tokens/{k}}},sinks=4" for k in (2, 4, 16)),
    "window without sinks": tuple(f"window:window={{tokens/{k}}},sinks=0" for k in (2, 4, 16)),
    "pooled": tuple(f"pooled:window={{tokens/{k}}},pool={{tokens/64}},sinks=64" for k in (4, 8, 16)),
    "linear": tuple(f"linear:feature_map={m}" for m in ("taylor2", "elu", "relu")),
    "clipped": tuple(f"clipped:gamma={g}" for g in (-0.0003, -0.003, -0.03)),
}

_SEQUENCES: dict[str, tuple[str, ...]] = {
    "window": tuple(f"window:window={n},sinks=1" for n in (256, 128, 32)),
    "agent": tuple(f"agent:agents={n}" for n in (128, 64, 16)),
    "nystrom": tuple(f"nystrom:landmarks={n},pool=mean" for n in (128, 64, 32)),
    "linear": tuple(f"linear:feature_map={m}" for m in ("taylor2", "elu", "relu")),
    "clipped": tuple(f"clipped:gamma={g}" for g in (-0.0003, -0.003, -0.03)),
    "pooled": tuple(f"pooled:window={n},pool=8,sinks=1" for n in (256, 128, 32)),
    "merge": tuple(f"merge:ratio={r},protect=1" for r in (0.125, 0.25, 0.5)),
}

FAMILIES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "dinov2": _IMAGES,
    "smollm2": _TEXT,
    "minilm": _SEQUENCES,
    "whisper": _SEQUENCES,
}
"""Forms by the first part of a workload's name; ``{tokens/4}`` is a quarter of its length."""

_SHARE = re.compile(r"\{tokens/(\d+)\}")


def cases(workload: str) -> Iterator[Case]:
    """Yield the cases of a workload."""
    model, _, tokens = workload.partition("-")
    for family, forms in FAMILIES[model].items():
        for template in forms:
            form = _SHARE.sub(lambda share: str(int(tokens) // int(share[1])), template)
            for select in ("all",) if "keep=" in form else ("all", HALF):  # it chooses its layers itself
                yield Case(workload, family, form, select)
