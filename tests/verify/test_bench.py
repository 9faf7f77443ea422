from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

import rewriter
from rewriter.errors import InputError
from rewriter.program.program import Program
from rewriter.verify.bench import BenchReport, Crossover, Row, SizeReport, _crossovers, bench, time_models
from rewriter.verify.dimensions import dimensions
from rewriter.verify.inputs import random_case
from rewriter.verify.intervals import Interval


class Clock:
    """Time that passes only when a model runs."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def slow(self, program: Program, seconds: Callable[[], float]) -> Program:
        run = program.run

        def timed(*inputs: np.ndarray) -> object:
            self.now += seconds()
            return run(*inputs)

        program.run = timed  # type: ignore[method-assign,assignment]
        return program


class Double(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def program() -> Program:
    return rewriter.trace(Double(), (torch.ones(3, 4),), dynamic_shapes=({0: torch.export.Dim("rows")},))


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_ratio_is_that_of_the_rounds_and_the_first_has_none(clock: Clock) -> None:
    models = {"old": clock.slow(program(), lambda: 3.0), "new": clock.slow(program(), lambda: 1.5)}
    (rows,) = dimensions(models["old"])
    found = bench(models, [random_case(models["old"], {rows: 5})], rounds=9, clock=clock)
    old, new = found.sizes[0].rows
    assert (old.seconds, new.seconds) == ((3.0,) * 9, (1.5,) * 9)
    assert old.speed is None
    assert new.speed is not None
    assert (new.speed.median, new.speed.low, new.speed.high) == (2.0, 2.0, 2.0)
    assert found.sizes[0].sizes == {rows: 5}


def test_a_drifting_machine_moves_times_and_not_the_ratio(clock: Clock) -> None:
    loads: Iterator[float] = iter(np.geomspace(1, 10, 34).tolist())
    now = {"load": 1.0}

    def seconds(base: float) -> Callable[[], float]:
        def take() -> float:
            now["load"] = next(loads)
            return base * now["load"]

        return take

    models = {"old": clock.slow(program(), seconds(2.0)), "new": clock.slow(program(), seconds(1.0))}
    (rows,) = dimensions(models["old"])
    (_, new) = time_models(models, random_case(models["old"], {rows: 2}), rounds=15, clock=clock)
    assert new.speed is not None
    assert new.speed.median == pytest.approx(2.0, rel=0.1)
    assert max(new.seconds) > 3 * min(new.seconds)


def test_what_failed_validation_is_timed_and_gets_no_ratio(clock: Clock) -> None:
    models = {n: clock.slow(program(), lambda: 1.0) for n in ("a", "b", "c")}
    (rows,) = dimensions(models["a"])
    found = bench(models, [random_case(models["a"], {rows: 2})], rounds=3, red={"b": "no"}, clock=clock)
    a, b, c = found.sizes[0].rows
    assert b.seconds and b.speed is None and c.speed is not None and a.speed is None
    assert found.red == {"b": "no"}


def test_memory_is_measured_once_per_model_and_size() -> None:
    asked: list[tuple[str, str]] = []

    def peak(model: str, case: object) -> int:
        asked.append((model, str(getattr(case, "name", ""))))
        return 7

    models = {"a": program(), "b": program()}
    (rows,) = dimensions(models["a"])
    cases = [random_case(models["a"], {rows: n}) for n in (2, 3)]
    found = bench(models, cases, rounds=3, peak=peak)
    assert asked == [(m, f"random, {rows}={n}") for n in (2, 3) for m in "ab"]
    assert {r.peak for s in found.sizes for r in s.rows} == {7}


class Fixed(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(3, 4) * 2


def test_who_cannot_run_a_size_is_left_out_of_it() -> None:
    models = {"any": program(), "three": rewriter.trace(Fixed(), (torch.ones(3, 4),))}
    (rows,) = dimensions(models["any"])
    five = random_case(models["any"], {rows: 5})
    whole, broken = time_models(models, five, rounds=3)
    assert whole.seconds and not broken.seconds and broken.error is not None and broken.speed is None
    with pytest.raises(InputError, match="could be run on no input"):
        bench({"three": models["three"], "any": models["any"]}, [five], rounds=3)


def test_models_with_other_inputs_are_no_pair() -> None:
    class Two(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + y

    other = rewriter.trace(Two(), (torch.ones(3, 4), torch.ones(3, 4)))
    base = program()
    (rows,) = dimensions(base)
    with pytest.raises(InputError, match="different inputs"):
        time_models({"a": base, "b": other}, random_case(base, {rows: 3}), rounds=3)


def _at(length: int, low: float, median: float, high: float) -> SizeReport:
    speed = Interval(median, low, high, 0.95)
    return SizeReport(f"n={length}", {"n": length, "batch": 1}, (Row("a", (1.0,)), Row("b", (1.0,), speed)))


@pytest.mark.parametrize(
    ("sizes", "verdict", "between"),
    [
        ([_at(64, 0.4, 0.5, 0.6), _at(256, 1.9, 2.0, 2.1)], "faster from", (64, 256)),
        ([_at(64, 1.9, 2.0, 2.1), _at(256, 0.4, 0.5, 0.6)], "faster up to", (64, 256)),
        ([_at(64, 1.1, 1.5, 1.6), _at(256, 1.9, 2.0, 2.1)], "faster everywhere", None),
        ([_at(64, 0.4, 0.5, 0.6), _at(256, 0.8, 0.9, 0.95)], "slower everywhere", None),
        ([_at(64, 0.9, 0.95, 1.1), _at(256, 1.9, 2.0, 2.1)], "faster where it is decided", None),
        ([_at(64, 0.4, 0.5, 0.6), _at(256, 0.9, 1.2, 2.1)], "slower where it is decided", None),
        ([_at(64, 0.9, 0.95, 1.1), _at(256, 0.9, 1.0, 2.1)], "undecided", None),
        ([_at(64, 0.4, 0.5, 0.6), _at(96, 0.9, 1.0, 1.1), _at(256, 1.9, 2.0, 2.1)], "faster from", (64, 256)),
        (
            [_at(1, 0.4, 0.5, 0.6), _at(2, 1.9, 2.0, 2.1), _at(3, 0.4, 0.5, 0.6)],
            "undecided",
            None,
        ),
    ],
)
def test_where_one_becomes_faster(
    sizes: list[SizeReport], verdict: str, between: tuple[int, int] | None
) -> None:
    (found,) = _crossovers(("a", "b"), sizes[::-1])
    assert (found.model, found.dimension, found.verdict, found.between) == ("b", "n", verdict, between)
    if between is not None:
        assert found.length == pytest.approx(128.0)  # 0.5 at 64 and 2 at 256: 1 is half way in logarithms


def test_no_crossing_without_two_sizes_of_one_dimension() -> None:
    one = _at(64, 0.4, 0.5, 0.6)
    assert _crossovers(("a", "b"), [one]) == ()
    both = SizeReport("", {"n": 128, "batch": 2}, one.rows)
    assert _crossovers(("a", "b"), [one, both]) == ()


def test_crossover_is_a_value() -> None:
    assert BenchReport(("a",), ()).crossovers == () and Crossover("b", "n", "undecided").length is None
