from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rewriter.errors import InputError
from rewriter.program.fx import trace
from rewriter.verify.compare import validate
from rewriter.verify.resume import open_record


class Net(torch.nn.Module):
    def __init__(self, error: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(8, 8)
        self.error = error

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.softmax(self.linear(x), -1) + self.error
        return y, y.argmax(-1)


@cache
def program(error: float = 0.0) -> Any:
    return trace(Net(error), (torch.randn(4, 8),), dynamic_shapes=({0: torch.export.Dim("n")},))


def data() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(3)
    return [{"x": rng.standard_normal((n, 8)).astype(np.float32)} for n in (3, 8, 2)]


def quality(run: Any) -> dict[str, float]:
    return {"mean": float(run(data()[0]["x"])[0].mean())}


class Interrupt:
    """Interrupts after a number of steps, as a key would."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, what: str, done: int, total: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def compare(resume: Path | None, progress: Any = None, error: float = 1e-9, seed: int = 0) -> Any:
    return validate(
        program(),
        program(error),
        data=data(),
        source=Net(),
        seed=seed,
        tasks=[quality],
        resume=resume,
        progress=progress,
    )


def interruptions() -> Iterator[int]:
    told: list[str] = []
    compare(None, lambda what, *_: told.append(what))
    assert {"comparing", "noise floor", "task quality"} == set(told)
    noise = told.index("noise floor")
    yield from (1, noise // 2, noise + 1, len(told) - 1)


def test_an_interrupted_run_goes_on_with_the_same_result(tmp_path: Path) -> None:
    whole = compare(None).to_json()
    for after in interruptions():
        record = tmp_path / "work"
        with pytest.raises(KeyboardInterrupt):
            compare(record, Interrupt(after))
        assert record.exists()
        finished = len(record.read_text().splitlines())
        with pytest.raises(KeyboardInterrupt):
            compare(record, Interrupt(after))
        assert len(record.read_text().splitlines()) >= finished
        assert compare(record).to_json() == whole
        assert list(tmp_path.iterdir()) == []


def test_finished_work_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        compare(record, lambda what, *_: _interrupt_at("noise floor", what))
    from rewriter.verify.comparison import Comparison

    monkeypatch.setattr(Comparison, "find", lambda *_: pytest.fail("a finished input is compared again"))
    assert compare(record).ok


def _interrupt_at(wanted: str, what: str) -> None:
    if what == wanted:
        raise KeyboardInterrupt


def test_a_line_that_is_torn_is_dropped(tmp_path: Path) -> None:
    whole = compare(None).to_json()
    record = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        compare(record, Interrupt(6))
    text = record.read_bytes()
    for cut in (1, 20, len(text) // 3):
        record.write_bytes(text[:-cut])
        assert compare(record).to_json() == whole


@pytest.mark.parametrize("change", [{"error": 1e-3}, {"seed": 1}])
def test_a_record_of_other_work_is_not_used(tmp_path: Path, change: dict[str, Any]) -> None:
    record = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        compare(record, lambda what, *_: _interrupt_at("task quality", what))
    assert compare(record, **change).to_json() == compare(None, **change).to_json()


def test_values_come_back(tmp_path: Path) -> None:
    path = tmp_path / "r"
    value = {"a": [0.1 + 0.2, float("inf"), 1 << 70], "b": None, "ö": "\n"}
    with open_record(path, "k") as record:
        assert record.kept and record.get("x") is None
        record.put("x", value)
    with open_record(path, "k") as record:
        assert record.get("x") == value and len(record) == 1 and not record.restarted
        record.put("y", 1)
    with open_record(path, "other") as record:
        assert record.restarted and record.get("x") is None
    with open_record(path, "other") as record:
        assert not record.restarted and len(record) == 0
        record.finish()
    assert not path.exists()
    with open_record(None, "k") as record:
        record.put("x", 1)
        assert not record.kept and record.get("x") is None


HEAD = json.dumps({"kind": "rewriter record", "version": 1, "key": "k"})


@pytest.mark.parametrize(
    "text",
    [
        "a diary\nof mine\n",
        "[]\n",
        "{}\n",
        "3\n",
        json.dumps({"kind": "rewriter record", "version": 9, "key": "k"}) + "\n",
        HEAD + "\nnot json\n[]\n",
        HEAD + "\n[1, 2, 3]\n",
        HEAD + "\n" + "[" * 100_000 + "\n",
        HEAD,
        "",
        "\xff",
    ],
)
def test_a_file_that_is_no_record_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="is no record of this version to resume"):
        open_record(path, "k")
    assert path.read_bytes() == text.encode("latin-1") and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("damage", ["finding", "noise", "task"])
def test_values_of_another_kind_are_refused(tmp_path: Path, damage: str) -> None:
    record = tmp_path / "work"

    def last(what: str, done: int, total: int) -> None:
        if what == "task quality" and done == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(record, last)
    lines = record.read_text().splitlines()
    if damage == "task":
        lines.append(json.dumps(["task quality", [["mean", "high", None]]]))
    else:
        at = 1 if damage == "finding" else len(lines) - 1
        name, _ = json.loads(lines[at])
        lines[at] = json.dumps(
            [name, {"outputs": 3} if damage == "finding" else [{"tally": [], "unstable": []}]]
        )
    record.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match="is damaged; delete the file to start again"):
        compare(record)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a regular file"):
        open_record(tmp_path, "k")
    with pytest.raises(InputError, match="cannot be used to resume"):
        open_record(tmp_path / "nowhere" / "r", "k")
