from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewriter.errors import InputError
from rewriter.verify import floors
from rewriter.verify.compare import validate
from rewriter.verify.task import load_tasks

X = [("x", ("n", 4), "float32")]
Y = [("y", ("n", 4), "float32")]


@pytest.fixture(autouse=True)
def _weightless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, "perturbed_program", lambda program, seed: program)


def mean(run: Any) -> float:
    return float(np.mean(run(np.ones((3, 4), np.float32))[0]))


def several(run: Any) -> dict[str, float]:
    return {"mean": mean(run), "size": 12}


def models(numpy_program: Any) -> tuple[Any, Any]:
    return numpy_program(lambda x: (x,), X, Y), numpy_program(lambda x: (x * np.float32(0.75),), X, Y)


def test_a_task_is_measured_on_both_and_bounded(numpy_program: Any) -> None:
    pair = models(numpy_program)
    report = validate(*pair, tasks=[mean], budget=["task.mean>=0.7", "task.mean.change>=-0.3"])
    (task,) = report.tasks
    assert report.ok and (task.name, task.original, task.rewritten) == ("mean", 1.0, 0.75)
    assert not validate(*pair, tasks=[mean], budget="task.mean>=0.8").ok
    assert not validate(*pair, tasks=[mean], budget="task.mean.change>=-0.2").ok
    assert report.to_dict()["tasks"] == [{"name": "mean", "original": 1.0, "rewritten": 0.75}]


def test_tasks_by_name_and_with_several_numbers(numpy_program: Any) -> None:
    pair = models(numpy_program)
    assert [t.name for t in validate(*pair, tasks={"wer": mean}).tasks] == ["wer"]
    assert [t.name for t in validate(*pair, tasks=[several]).tasks] == ["mean", "size"]
    with pytest.raises(InputError, match="two tasks measure mean"):
        validate(*pair, tasks=[mean, several])
    with pytest.raises(InputError, match="no task metric 'wer'; give a --task"):
        validate(*pair, budget="task.wer<=1")


def test_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("measures_of_a_test.py").write_text("def score(run):\n    return 1.0\nlevel = 3\n")
    assert list(load_tasks(["measures_of_a_test:score", "again=measures_of_a_test:score"])) == [
        "score",
        "again",
    ]
    for wrong, complaint in [
        ("measures_of_a_test:level", "no callable 'level'"),
        ("measures_of_a_test", "expected .NAME=.module:callable"),
        ("=measures_of_a_test:score", "expected"),
        ("no_such_module_here:score", "cannot import"),
    ]:
        with pytest.raises(InputError, match=complaint):
            load_tasks([wrong])
    with pytest.raises(InputError, match="given twice"):
        load_tasks(["measures_of_a_test:score"] * 2)


@pytest.mark.parametrize(
    ("task", "complaint"),
    [
        (lambda run: 1 / 0, "failed on numpy: ZeroDivisionError: division by zero"),
        (lambda run: "good", "returned str; expected a number"),
        (lambda run: None, "returned NoneType"),
        (lambda run: {"a": []}, "returned dict"),
    ],
)
def test_tasks_that_fail(numpy_program: Any, task: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        validate(*models(numpy_program), tasks={"t": task})
