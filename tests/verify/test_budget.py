from __future__ import annotations

import numpy as np
import pytest

from rewriter.errors import InputError
from rewriter.verify.budget import METRICS, Budget, parse_budget, parse_budgets
from rewriter.verify.distance import distance

X = np.random.default_rng(0).standard_normal((7, 9))


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("cos>=0.99", Budget("cos", 0.99)),
        (" KL <= 0.02 ", Budget("kl", 0.02)),
        ("top1>=98%", Budget("top1", 0.98)),
        ("sqnr>=30dB", Budget("sqnr", 30.0)),
        ("sqnr>=30 db", Budget("sqnr", 30.0)),
        ("max_abs<=1e-3", Budget("max_abs", 1e-3)),
        ("rel<=1%", Budget("rel", 0.01)),
        ("kl@logits<=.02", Budget("kl", 0.02, "logits")),
        ("kl@a.b/c:0<=1", Budget("kl", 1.0, "a.b/c:0")),
        ("soft_iou>=95%", Budget("soft_iou", 0.95)),
        ("rel_p99<=1%", Budget("rel_p99", 0.01)),
        ("agreement>=0.999", Budget("agreement", 0.999)),
        ("task.wer<=0.04", Budget("task.wer", 0.04, direction="<=")),
        ("task.top-1.change >= -0.5%", Budget("task.top-1.change", -0.005, direction=">=")),
    ],
)
def test_reads(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget
    assert parse_budget(str(budget)) == budget


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("good", "not METRIC<=X"),
        ("", "METRIC<=X"),
        (" ", "is empty: expected METRIC<=X .* the metrics are agreement, cos, .*, top5 and task.NAME"),
        ("cos>=0.9,", "budget '' is empty"),
        ("psnr>=3", "there is no metric 'psnr'; the metrics are agreement, cos"),
        ("task.<=3", "which task metric"),
        ("task.wer<3", "write task.wer<=X or task.wer>=X"),
        ("task.wer@y<=3", "takes no @output"),
        ("task.wer<=nan", "between"),
        ("task.wer<=3dB", "not measured in dB"),
        ("cos<=0.9", "cos is better when larger, so write cos>=X"),
        ("kl>=0.1", "kl is better when smaller"),
        ("kl<0.1", "write kl<=X"),
        ("cos>=nice", "'nice' is not a number"),
        ("cos>=1.5", "between -1 and 1"),
        ("kl<=-1", "between 0 and inf"),
        ("kl<=nan", "between 0 and inf"),
        ("kl<=3dB", "not measured in dB"),
        ("kl<=3%", "takes no %"),
    ],
)
def test_says_what_is_wrong(text: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        parse_budgets(text)


def test_several_combine() -> None:
    assert parse_budgets("cos>=0.9, kl<=1") == (Budget("cos", 0.9), Budget("kl", 1.0))
    assert parse_budgets(["cos>=0.9", Budget("kl", 1.0)]) == (Budget("cos", 0.9), Budget("kl", 1.0))
    assert parse_budgets(None) == ()


@pytest.mark.parametrize("metric", [m for m in METRICS if m != "agreement"])
def test_equal_outputs_meet_the_tightest_budget(metric: str) -> None:
    shares = {"top1": 1.0, "top5": 1.0, "soft_iou": 1.0}
    tightest = {"cos": 1 - 1e-12, "sqnr": 300.0, **shares}.get(metric, 0.0)
    assert Budget(metric, tightest).check({"y": distance(X, X)}).ok
    assert not Budget(metric, tightest).check({"y": distance(X, X[::-1])}).ok


def test_the_worst_output_counts_unless_one_is_named() -> None:
    outputs = {"good": distance(X, X), "bad": distance(X, -X)}
    outcome = Budget("cos", 0.9).check(outputs)
    assert (outcome.output, outcome.ok) == ("bad", False)
    assert Budget("cos", 0.9, "good").check(outputs).ok
    with pytest.raises(InputError, match="no floating output 'ugly', only good, bad"):
        Budget("cos", 0.9, "ugly").check(outputs)


def test_nan_in_one_of_the_two_meets_no_budget() -> None:
    broken = X.copy()
    broken[0, 0] = np.nan
    assert not Budget("cos", -1.0).check({"y": distance(X, broken)}).ok
    assert Budget("cos", 0.5).check({"y": distance(broken, broken)}).ok
    assert not Budget("kl", 9.0).met(float("nan"))


def test_a_measure_of_integers_is_not_one_of_floats() -> None:
    shares = {"ids": 0.5, "mask": 1.0}
    outcome = Budget("agreement", 0.9).check({}, shares)
    assert (outcome.output, outcome.measured, outcome.ok) == ("ids", 0.5, False)
    assert Budget("agreement", 0.9, "mask").check({"y": distance(X, -X)}, shares).ok
    with pytest.raises(InputError, match="no integer or boolean output to measure"):
        Budget("agreement", 0.9).check({"y": distance(X, X)})
    with pytest.raises(InputError, match="no floating output 'ids', only none"):
        Budget("cos", 0.9, "ids").check({}, shares)


def test_task_metrics() -> None:
    tasks = {"wer": 0.03, "wer.change": -0.01}
    assert parse_budget("task.wer<=0.04").check({}, {}, tasks).ok
    assert not parse_budget("task.wer>=0.04").check({}, {}, tasks).ok
    outcome = parse_budget("task.wer.change>=0").check({}, {}, tasks)
    assert str(outcome) == "task.wer.change is -0.01, which misses task.wer.change>=0"
    assert not parse_budget("task.wer<=0.04").met(float("nan"))
    with pytest.raises(InputError, match=r"no task metric .acc., only wer, wer\.change"):
        parse_budget("task.acc>=0.9").check({}, {}, tasks)


def test_a_bound_is_told_as_it_was_given() -> None:
    assert str(parse_budget("cos>=0.9999999")) == "cos>=0.9999999"
