"""What a traced module calls its outputs is what its callers call them."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rewriter.errors import InputError
from rewriter.program.fx import FxProgram, trace
from rewriter.verify.compare import validate

Pair = namedtuple("Pair", ["mean", "total"])


class Net(nn.Module):
    def __init__(self, shaped: Callable[[Tensor, Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.shaped = nn.Linear(4, 4), shaped

    def forward(self, x: Tensor) -> Any:
        y = self.linear(x)
        return self.shaped(y, y.sum(), y.mean())


def traced(shaped: Callable[[Tensor, Tensor, Tensor], Any]) -> FxProgram:
    return trace(Net(shaped), (torch.randn(2, 4),))


@pytest.mark.parametrize(
    ("shaped", "names"),
    [
        (lambda y, s, m: {"y": y, "past": [(s, m)]}, ("y", "past.0.0", "past.0.1")),
        (lambda y, s, m: {"y": y, "none": None, "three": 3, "m": m}, ("y", "m")),
        (lambda y, s, m: {"a.b": y, "a": {"b": s}}, None),
        (lambda y, s, m: (y, [s, m]), None),
        (lambda y, s, m: y, None),
    ],
)
def test_keys_are_names(shaped: Any, names: tuple[str, ...] | None, tmp_path: Path) -> None:
    program = traced(shaped)
    assert program.output_names == (names if names is not None else program.graph.outputs)
    program.save(tmp_path / "p.pt2")
    assert FxProgram.load(tmp_path / "p.pt2").output_names == program.output_names


def test_fields_are_names(tmp_path: Path) -> None:
    program = traced(lambda y, s, m: Pair(m, y))
    assert program.output_names == ("mean", "total")
    with pytest.raises(InputError, match=r"cannot be written \(Can't serialize TreeSpec of namedtuple.*\)$"):
        program.save(tmp_path / "p.pt2")


def test_outputs_in_another_order_are_matched_by_key() -> None:
    first = traced(lambda y, s, m: {"y": y, "sum": s, "mean": m})
    second = traced(lambda y, s, m: {"mean": m, "y": y, "sum": s})
    report = validate(first, second)
    assert report.ok and report.notes == ()
    assert {o.output for o in report.summary["random"]} == {"y", "sum", "mean"}
    assert validate(first, Net(lambda y, s, m: {"sum": s, "mean": m, "y": y})).ok
    assert not validate(first, traced(lambda y, s, m: {"y": y, "sum": m, "mean": s})).ok


def test_budgets_name_keys() -> None:
    first, second = (
        traced(shaped)
        for shaped in (lambda y, s, m: {"y": y, "sum": s}, lambda y, s, m: {"y": y + 0.1, "sum": s})
    )
    assert validate(first, second, budget="max_abs@sum<=0").ok
    assert not validate(first, second, budget="max_abs@y<=0.05").ok


def test_outputs_without_keys_are_matched_by_position_whatever_their_nodes_are_called() -> None:
    first = traced(lambda y, s, m: (y + 1, y + 2))
    second = traced(lambda y, s, m: ((y + 0) + 1, y + 2))
    assert set(first.graph.outputs) & set(second.graph.outputs)
    assert first.graph.outputs[1] == second.graph.outputs[0]
    assert validate(first, second).ok
    assert not validate(first, traced(lambda y, s, m: (y + 2, y + 1))).ok
