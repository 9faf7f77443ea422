from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

Call = Callable[[str], Any]

TASKS = """
import numpy as np
def level(run):
    return float(np.abs(run(np.ones((1, 4, 8), "float32"))[0]).mean())
def texts(run):
    return {"wer": 0.03}
def inputs():
    for n in (3, 9):
        yield {"x": np.full((1, n, 8), 0.5, "float32")}
def net():
    import torch
    class Same(torch.nn.Module):
        def forward(self, x):
            return x
    return Same()
def broken():
    raise OSError("no disk")
"""


@pytest.fixture
def here(model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to the folder of the model, with a module of the user's own beside it."""
    monkeypatch.chdir(model.parent)
    Path("my_tasks_of_a_test.py").write_text(TASKS)
    return model.parent


@pytest.fixture
def scaled(here: Path) -> Path:
    """Write the model with its values three per mille larger, and its output under another name."""
    proto = onnx.load(here / "model.onnx")
    for weight in proto.graph.initializer:
        if weight.name == "wv":
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.003), "wv"))
    proto.graph.output[0].name = proto.graph.node[-1].output[0] = "out"
    onnx.save(proto, here / "scaled.onnx")
    return here / "scaled.onnx"


def test_it_says_what_differs_and_what_would_pass(call: Call, scaled: Path) -> None:
    said = call("validate model.onnx scaled.onnx")
    assert said.status == 1 and "over the tolerance" in said.out
    record = json.loads(call("validate model.onnx scaled.onnx --json").out)
    (output,) = record["summary"]["random"]
    assert output["factor"] == output["max_abs"] / output["noise"]["max_abs"] > 16
    assert record["notes"] == ["outputs matched by position, as names differ: y = out"]
    for bound in (f"max_abs<={output['max_abs']!r}", f"tol<={output['tol']!r}", "rel<=0.31%", "sqnr>=50dB"):
        assert call(f"validate model.onnx scaled.onnx --budget {bound}").status == 0
    assert call("validate model.onnx scaled.onnx --budget rel<=0.29%").status == 1


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--budget psnr>=3", "there is no metric 'psnr'; the metrics are agreement, cos"),
        ("--budget cos<=0.9", "cos is better when larger, so write cos>=X"),
        ("--budget ,", "budget '' is empty: expected METRIC<=X"),
        ("--budget task.wer<=1", "there is no task metric 'wer'; give a --task"),
        ("--budget cos@z>=0", "there is no floating output 'z', only y"),
        ("--mask m", "mask 'm' is no input of the model; its inputs are x"),
        (
            "--match y=z",
            r"match y=z: expected ORIGINAL=REWRITTEN of the inputs (x) and (x), or of the outputs (y)",
        ),
        ("--at length", "expected NAME=N,N"),
        ("--at x.2=3", "x.2 is 8 in every input"),
        ("--at x.1=3 --at length=4", "x.1 and length are one dimension, length; give it once"),
        ("--at depth=3", "there is no dimension 'depth'; model.onnx has batch (x.0), length (x.1)"),
        ("--task level", "expected [NAME=]module:callable"),
        ("--task my_tasks_of_a_test:none", "my_tasks_of_a_test has no callable 'none'"),
        ("--data images:.:size=3", "holds no images"),
        ("--data text:my_tasks_of_a_test.py", "which input takes the tokens? The model has x"),
        ("--data my_tasks_of_a_test:broken", "failed: OSError: no disk"),
        ("--source my_tasks_of_a_test:broken", "failed: OSError: no disk"),
        ("--resume model.onnx", "is the input; it is never modified"),
        ("--resume my_tasks_of_a_test.py", "is no record of this version to resume"),
        ("--resume r --report r", "is the report"),
        ("--data text:my_tasks_of_a_test.py --report my_tasks_of_a_test.py", "is the input; it is never"),
    ],
)
def test_an_error_is_one_line(call: Call, here: Path, options: str, complaint: str) -> None:
    before = {p: p.read_bytes() for p in here.iterdir() if p.is_file()}
    said = call(f"validate model.onnx model.onnx {options}")
    assert said.status == 2 and complaint in said.err and said.out == ""
    assert len(said.err.splitlines()) == 1
    assert {p: p.read_bytes() for p in here.iterdir() if p.is_file()} == before


def test_tasks_data_sizes_and_names(call: Call, scaled: Path) -> None:
    command = "validate model.onnx scaled.onnx --match y=out --data my_tasks_of_a_test:inputs"
    command += " --task my_tasks_of_a_test:level --task my_tasks_of_a_test:texts --at length=5,1 --json"
    record = json.loads(
        call(f"{command} --budget task.wer<=0.04 --budget cos>=0.99,task.level.change<=0.1").out
    )
    assert record["ok"] and record["notes"] == []
    assert [(t["name"], t["rewritten"] >= t["original"]) for t in record["tasks"]] == [
        ("level", True),
        ("wer", True),
    ]
    groups = [(c["group"], c["sizes"].get("length")) for c in record["cases"]]
    assert [length for group, length in groups if group == "random"] == [5, 1]
    assert sum(group == "data" for group, _ in groups) == 2
    assert call(f"{command} --budget task.wer<=0.02").status == 1


def test_data_has_one_hash_wherever_it_came_from(call: Call, here: Path) -> None:
    def found(data: str) -> Any:
        record = json.loads(call(f"validate model.onnx model.onnx --data {data} --json").out)
        return record["provenance"]["data"]

    (sha,) = found("my_tasks_of_a_test:inputs").values()
    for at, n in enumerate((3, 9)):
        (here / "same").mkdir(exist_ok=True)
        np.savez(here / "same" / f"{at}.npz", np.full((1, n, 8), 0.5, np.float32))
    assert found("same") == {"same": sha}
    np.savez(here / "same" / "1.npz", np.full((1, 9, 8), 0.500001, np.float32))
    assert found("same") != {"same": sha}
    assert call("validate model.onnx model.onnx --data same --report page.html").status == 0
    assert found("same")["same"] in (here / "page.html").read_text()
    record = json.loads(call("validate model.onnx model.onnx --json").out)
    assert record["provenance"]["data"] == {}


def test_a_module_by_name(call: Call, here: Path) -> None:
    said = call("validate model.onnx my_tasks_of_a_test:net --budget cos>=0.999 --json")
    assert said.status == 1 and not json.loads(said.out)["ok"]
    assert call("validate my_tasks_of_a_test:net model.onnx --budget cos>=-1").status == 0
    said = call("inspect my_tasks_of_a_test:net")
    assert said.status == 2 and "what Same takes is not known; give (module, args)" in said.err


def test_an_interrupted_run_leaves_a_record(
    call: Call, scaled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rewriter.verify import floors

    command = "validate model.onnx scaled.onnx --budget cos>=0.9 --resume work --json"
    whole = json.loads(call(command.replace("--resume work", "")).out)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr(floors, "perturbed_program", interrupt)
        said = call(command)
        assert said.status == 130 and Path("work").exists()
        assert "what is finished is in work; the same command goes on from there" in said.err
        page = call(command.replace("--resume work", "--report page.html"))
        assert page.status == 130 and Path("page.html.resume").exists() and not Path("page.html").exists()
    again = json.loads(call(command).out)
    assert not Path("work").exists()
    for record in (whole, again):
        record.pop("provenance")
    assert again == whole
