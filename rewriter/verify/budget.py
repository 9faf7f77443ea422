"""Budgets: how far from the original a rewritten model may be, in a one-line language.

``cos>=0.99``, ``kl<=0.02``, ``top1>=0.98``, ``sqnr>=30dB``, ``max_abs<=1e-3``, ``rel<=1%``; with
``@name`` a budget speaks of one output only (``kl@logits<=0.02``). ``agreement>=0.999`` is for integer and
boolean outputs. ``task.wer<=0.04`` bounds a task metric of the rewritten model, ``task.wer.change<=0.01``
how much more it is than that of the original; both may be bounded from either side, as only the user knows
which is better. Several budgets must all hold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from rewriter.errors import InputError
from rewriter.verify.distance import Distance

__all__ = ["METRICS", "Budget", "Direction", "Metric", "Outcome", "parse_budget", "parse_budgets"]

Direction = Literal["<=", ">="]

TASK = "task."
"""What the name of a task metric begins with."""


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
        What it is, in one line; its definition is in `rewriter.verify.metrics`.
    share
        Whether a bound may be written in per cent.
    """

    direction: Direction
    low: float
    high: float
    summary: str
    share: bool = False


METRICS: Mapping[str, Metric] = {
    "agreement": Metric(">=", 0.0, 1.0, "share of equal elements of an integer or boolean output", True),
    "cos": Metric(">=", -1.0, 1.0, "cosine between the flattened outputs"),
    "elem_rel": Metric("<=", 0.0, math.inf, "largest error of an element over its own size", True),
    "kl": Metric("<=", 0.0, math.inf, "mean KL divergence of softmax over the last axis, in nats"),
    "max_abs": Metric("<=", 0.0, math.inf, "largest absolute error"),
    "max_rel": Metric("<=", 0.0, math.inf, "largest absolute error over the largest absolute value", True),
    "p50": Metric("<=", 0.0, math.inf, "absolute error that half of the elements do not exceed"),
    "p99": Metric("<=", 0.0, math.inf, "absolute error that 99 % of the elements do not exceed"),
    "p999": Metric("<=", 0.0, math.inf, "absolute error that 99.9 % of the elements do not exceed"),
    "rel": Metric("<=", 0.0, math.inf, "Euclidean norm of the error over that of the output", True),
    "rel_p50": Metric("<=", 0.0, math.inf, "relative error that half of the elements do not exceed", True),
    "rel_p99": Metric("<=", 0.0, math.inf, "relative error that 99 % of the elements do not exceed", True),
    "rel_p999": Metric("<=", 0.0, math.inf, "relative error that 99.9 % of the elements do not exceed", True),
    "soft_iou": Metric(">=", 0.0, 1.0, "soft intersection over union of maps", True),
    "sqnr": Metric(">=", -math.inf, math.inf, "signal to noise ratio in dB"),
    "tol": Metric("<=", 0.0, math.inf, "least tolerance, absolute and relative at once, that allclose takes"),
    "top1": Metric(">=", 0.0, 1.0, "share of rows whose largest entry stays the same", True),
    "top5": Metric(">=", 0.0, 1.0, "share of the five largest entries of a row that stay among them", True),
}
"""By name; every one but ``agreement`` is of floating outputs."""

_BUDGET = re.compile(
    r"\s*(?P<metric>[A-Za-z_][\w.\-]*)\s*(?:@\s*(?P<output>[^<>=]+?))?\s*(?P<sign><=|>=|==|=|<|>)\s*(?P<bound>\S+?)\s*(?P<unit>dB|%)?\s*",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Budget:
    """One bound on one measure.

    Parameters
    ----------
    metric
        A name from `METRICS`, or ``task.NAME``.
    bound
        The worst value that is still accepted.
    output
        Name of the output it speaks of; None is every output that has the measure.
    direction
        Of a task metric; those of `METRICS` have one already.
    """

    metric: str
    bound: float
    output: str | None = None
    direction: Direction | None = None

    @property
    def sign(self) -> Direction:
        """``"<="`` where smaller is better, else ``">="``."""
        return self.direction or METRICS[self.metric].direction

    @property
    def task(self) -> str | None:
        """Name of the task metric it bounds, or None."""
        return self.metric.removeprefix(TASK) if self.metric.startswith(TASK) else None

    def met(self, measured: float) -> bool:
        """Whether a measured value is within the bound; NaN never is."""
        return measured <= self.bound if self.sign == "<=" else measured >= self.bound

    def check(
        self,
        outputs: Mapping[str, Distance],
        agreements: Mapping[str, float] = MappingProxyType({}),
        tasks: Mapping[str, float] = MappingProxyType({}),
    ) -> Outcome:
        """Return how the measured outputs stand against this budget: the worst of them counts.

        Parameters
        ----------
        outputs
            Measures of the floating outputs by name.
        agreements
            Share of equal elements of the other outputs by name.
        tasks
            Task metrics of the rewritten model, and their changes as ``NAME.change``.

        Raises
        ------
        InputError
            When it names an output or a task that is not there, or there is no output with the measure.
        """
        if self.task is not None:
            if self.task not in tasks:
                raise InputError(
                    f"budget {self}: there is no task metric {self.task!r}, only {_listed(tasks)}"
                )
            return Outcome(self, "", tasks[self.task], self.met(tasks[self.task]))
        self.require(outputs, agreements)
        of_floats = self.metric != "agreement"
        measured = (
            {name: float(getattr(d, self.metric)) for name, d in outputs.items()}
            if of_floats
            else dict(agreements)
        )
        names = [self.output] if self.output is not None else list(measured)
        name = (max if self.sign == "<=" else min)(names, key=measured.__getitem__)
        whole = not of_floats or all(outputs[n].pattern == 0 for n in names)
        return Outcome(self, name, measured[name], whole and self.met(measured[name]))

    def require(self, floating: Collection[str], others: Collection[str]) -> None:
        """Refuse to speak of outputs that are not there; a task metric speaks of none.

        Parameters
        ----------
        floating, others
            Names of the outputs, by what kind of number they hold.

        Raises
        ------
        InputError
            When it names another output, or there is none that has the measure.
        """
        if self.task is not None:
            return
        of_floats = self.metric != "agreement"
        known, kind = (floating, "floating") if of_floats else (others, "integer or boolean")
        if self.output is not None and self.output not in known:
            raise InputError(
                f"budget {self}: there is no {kind} output {self.output!r}, only {_listed(known)}"
            )
        if not known:
            raise InputError(f"budget {self}: the model has no {kind} output to measure")

    def __str__(self) -> str:
        where = f"@{self.output}" if self.output else ""
        unit = "dB" if self.metric == "sqnr" else ""
        return f"{self.metric}{where}{self.sign}{self.bound:.12g}{unit}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A budget, what was measured against it and on which output (none for a task metric)."""

    budget: Budget
    output: str
    measured: float
    ok: bool

    def __str__(self) -> str:
        unit = " dB" if self.budget.metric == "sqnr" else ""
        verb = "meets" if self.ok else "misses"
        of = f" of {self.output}" if self.output else ""
        return f"{self.budget.metric}{of} is {self.measured:.4g}{unit}, which {verb} {self.budget}"


def parse_budget(text: str) -> Budget:
    """Read one budget.

    >>> parse_budget("top1 >= 98%")
    Budget(metric='top1', bound=0.98, output=None, direction=None)

    Raises
    ------
    InputError
        When the text is no budget: it says what was found and what there is.
    """
    match = _BUDGET.fullmatch(text)
    if match is None:
        what = "is empty: expected" if not text.strip() else "is not"
        raise InputError(
            f"budget {text!r} {what} METRIC<=X or METRIC>=X, such as cos>=0.99; the metrics are {_known()}"
        )
    if match["metric"].lower().startswith(TASK):
        return _task_budget(text, match)
    name = match["metric"].lower()
    metric = METRICS.get(name)
    if metric is None:
        raise InputError(
            f"budget {text!r}: there is no metric {match['metric']!r}; the metrics are {_known()}"
        )
    if match["sign"] != metric.direction:
        better = "smaller" if metric.direction == "<=" else "larger"
        raise InputError(
            f"budget {text!r}: {name} is better when {better}, so write {name}{metric.direction}X"
        )
    return Budget(name, _bound(text, name, metric, match), match["output"])


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


def _task_budget(text: str, match: re.Match[str]) -> Budget:
    name = match["metric"][len(TASK) :]
    if not name:
        raise InputError(f"budget {text!r}: which task metric? Write task.NAME<=X")
    if match["sign"] not in ("<=", ">="):
        raise InputError(f"budget {text!r}: write {TASK}{name}<=X or {TASK}{name}>=X")
    if match["output"]:
        raise InputError(f"budget {text!r}: a task metric is of the whole model, so it takes no @output")
    direction: Direction = "<=" if match["sign"] == "<=" else ">="
    metric = Metric(direction, -math.inf, math.inf, "a task metric", share=True)
    return Budget(TASK + name, _bound(text, TASK + name, metric, match), direction=direction)


def _bound(text: str, name: str, metric: Metric, match: re.Match[str]) -> float:
    unit = (match["unit"] or "").lower()
    try:
        bound = float(match["bound"])
    except ValueError:
        raise InputError(f"budget {text!r}: {match['bound']!r} is not a number") from None
    if unit == "db" and name != "sqnr":
        raise InputError(f"budget {text!r}: {name} is not measured in dB; only sqnr is")
    if unit == "%":
        if not metric.share:
            raise InputError(f"budget {text!r}: {name} is not a share, so it takes no %")
        bound /= 100.0
    if math.isnan(bound) or not metric.low <= bound <= metric.high:
        raise InputError(f"budget {text!r}: {name} is between {metric.low:g} and {metric.high:g}")
    return bound


def _known() -> str:
    return f"{_listed(METRICS)} and task.NAME"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
