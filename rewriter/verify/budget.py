"""Budgets: how far from the original a rewritten model may be, in a one-line language.

``cos>=0.99``, ``kl<=0.02``, ``top1>=0.98``, ``sqnr>=30dB``, ``max_abs<=1e-3``, ``rel<=1%``; with
``@name`` a budget speaks of one output only (``kl@logits<=0.02``). Several budgets must all hold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from rewriter.errors import InputError
from rewriter.verify.distance import Distance

__all__ = ["METRICS", "Budget", "Outcome", "parse_budget", "parse_budgets"]

Direction = Literal["<=", ">="]


@dataclass(frozen=True, slots=True)
class Metric:
    """A measure that a budget may bound.

    Parameters
    ----------
    direction
        ``"<="`` where smaller is better.
    low, high
        Bounds that make sense.
    summary
        What it is, in one line.
    """

    direction: Direction
    low: float
    high: float
    summary: str


METRICS: Mapping[str, Metric] = {
    "cos": Metric(">=", -1.0, 1.0, "cosine between the flattened outputs"),
    "kl": Metric("<=", 0.0, math.inf, "mean KL divergence of softmax over the last axis, in nats"),
    "max_abs": Metric("<=", 0.0, math.inf, "largest absolute error"),
    "max_rel": Metric("<=", 0.0, math.inf, "largest absolute error over the largest absolute value"),
    "rel": Metric("<=", 0.0, math.inf, "Euclidean norm of the error over that of the output"),
    "sqnr": Metric(">=", -math.inf, math.inf, "signal to noise ratio in dB"),
    "top1": Metric(">=", 0.0, 1.0, "share of rows whose largest entry stays the same"),
}

_BUDGET = re.compile(
    r"\s*(?P<metric>[A-Za-z_]\w*)\s*(?:@\s*(?P<output>[^<>=]+?))?\s*(?P<sign><=|>=|==|=|<|>)\s*(?P<bound>\S+?)\s*(?P<unit>dB|%)?\s*",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Budget:
    """One bound on one measure.

    Parameters
    ----------
    metric
        A name from `METRICS`.
    bound
        The worst value that is still accepted.
    output
        Name of the output it speaks of; None is every floating output.
    """

    metric: str
    bound: float
    output: str | None = None

    def met(self, measured: float) -> bool:
        """Whether a measured value is within the bound; NaN never is."""
        return measured <= self.bound if METRICS[self.metric].direction == "<=" else measured >= self.bound

    def check(self, outputs: Mapping[str, Distance]) -> Outcome:
        """Return how the measured outputs stand against this budget: the worst of them counts.

        Raises
        ------
        InputError
            When it names an output that is not there, or there is no floating output at all.
        """
        if self.output is not None and self.output not in outputs:
            raise InputError(
                f"budget {self}: there is no floating output {self.output!r}, only {_listed(outputs)}"
            )
        if not outputs:
            raise InputError(f"budget {self}: the model has no floating output to measure")
        names = [self.output] if self.output is not None else list(outputs)
        worst = max if METRICS[self.metric].direction == "<=" else min
        name = worst(names, key=lambda n: getattr(outputs[n], self.metric))
        measured = float(getattr(outputs[name], self.metric))
        whole = all(outputs[n].pattern == 0 for n in names)
        return Outcome(self, name, measured, whole and self.met(measured))

    def __str__(self) -> str:
        where = f"@{self.output}" if self.output else ""
        unit = "dB" if self.metric == "sqnr" else ""
        return f"{self.metric}{where}{METRICS[self.metric].direction}{self.bound:g}{unit}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A budget, what was measured against it and on which output."""

    budget: Budget
    output: str
    measured: float
    ok: bool

    def __str__(self) -> str:
        unit = " dB" if self.budget.metric == "sqnr" else ""
        verb = "meets" if self.ok else "misses"
        return (
            f"{self.budget.metric} of {self.output} is {self.measured:.4g}{unit}, which {verb} {self.budget}"
        )


def parse_budget(text: str) -> Budget:
    """Read one budget.

    Raises
    ------
    InputError
        When the text is no budget: it says what was found and what there is.
    """
    match = _BUDGET.fullmatch(text)
    if match is None:
        raise InputError(f"budget {text!r} is not METRIC<=X or METRIC>=X; an example is cos>=0.99")
    name = match["metric"].lower()
    metric = METRICS.get(name)
    if metric is None:
        raise InputError(
            f"budget {text!r}: there is no metric {match['metric']!r}; the metrics are {_listed(METRICS)}"
        )
    if match["sign"] != metric.direction:
        better = "smaller" if metric.direction == "<=" else "larger"
        raise InputError(
            f"budget {text!r}: {name} is better when {better}, so write {name}{metric.direction}X"
        )
    return Budget(name, _bound(text, name, metric, match["bound"], match["unit"] or ""), match["output"])


def parse_budgets(texts: Iterable[str | Budget] | str | Budget | None) -> tuple[Budget, ...]:
    """Read any number of budgets; one string may hold several, separated by commas."""
    if texts is None:
        return ()
    if isinstance(texts, str | Budget):
        texts = [texts]
    found: list[Budget] = []
    for item in texts:
        found += [item] if isinstance(item, Budget) else map(parse_budget, item.split(","))
    return tuple(found)


def _bound(text: str, name: str, metric: Metric, number: str, unit: str) -> float:
    try:
        bound = float(number)
    except ValueError:
        raise InputError(f"budget {text!r}: {number!r} is not a number") from None
    if unit.lower() == "db" and name != "sqnr":
        raise InputError(f"budget {text!r}: {name} is not measured in dB; only sqnr is")
    if unit == "%":
        if name not in ("rel", "max_rel", "top1"):
            raise InputError(f"budget {text!r}: {name} is not a share, so it takes no %")
        bound /= 100.0
    if math.isnan(bound) or not metric.low <= bound <= metric.high:
        raise InputError(f"budget {text!r}: {name} is between {metric.low:g} and {metric.high:g}")
    return bound


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
