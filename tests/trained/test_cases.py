from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.trained.cases import FAMILIES, Case, cases
from benchmarks.trained.page import page
from benchmarks.trained.records import Folder, Measurement
from benchmarks.trained.workloads import WORKLOADS
from rewriter.selectors import parse_apply

CASE = Case("model-9", "window", "window:window=3", "all")
DONE = Measurement(
    sites=(2, 3),
    quality={"cosine": 0.5},
    original={"cosine": 1.0},
    speed=2.0,
    spread=(1.5, 2.5),
    attention=4.0,
    promised=5.0,
    expected=4.5,
    memory=0.25,
    notes="torch 0, 1 threads, cpu, load 1.5",
)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_form_is_read_and_has_three_strengths(workload: str) -> None:
    found = list(cases(workload))
    for case in found:
        parse_apply(f"{case.form}@{case.select}")
    assert {family: len(forms) for family, forms in FAMILIES[workload.partition("-")[0]].items()} == {
        case.family: 3 for case in found
    }


def test_measurements_are_kept(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    assert folder.read(CASE) is None
    folder.write(CASE, DONE)
    known = folder.read(CASE)
    assert known is not None
    assert (known.quality, known.speed, known.notes) == (DONE.quality, 2.0, DONE.notes)


def test_nothing_that_was_measured_is_left_out() -> None:
    half = Case("model-9", "window", "window:window=3", "best=0.5")
    other = Case("model-33", "agent", "agent:agents=4", "all")
    refused = Measurement("needs a grid", (0, 3), notes=DONE.notes)
    text = page("model", {CASE: DONE, half: DONE, other: refused}, "cosine", 4)
    assert "3 of 4 cases" in text
    assert (
        text.count("| `window:window=3` | 2 of 3 | 0.5 | 4.00 | 5.00 | 4.50 | 2.00 | 1.50-2.50 | 0.25 |") == 2
    )
    assert "| original |  | 1 | 1 | 1 | 1 | 1 |  | 1 |" in text
    assert "Refused: `agent:agents=4`: needs a grid" in text
    assert "Load of the machine when a case ended: 1.5 to 1.5." in text
