from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.cli.conftest import Call


@pytest.fixture
def other(model: Path) -> Path:
    """Write a model that is not the same: the values are twice as large."""
    wrong = onnx.load(model)
    for tensor in wrong.graph.initializer:
        if tensor.name == "wv":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(2), "wv"))
    path = model.with_name("other.onnx")
    onnx.save(wrong, path)
    return path


@pytest.fixture
def same(model: Path) -> Path:
    path = model.with_name("same.onnx")
    path.write_bytes(model.read_bytes())
    return path


SHORT = "--rounds 3 --seconds 0 --no-memory"


def test_equal_models_are_timed_at_every_size(call: Call, model: Path, same: Path) -> None:
    said = call(f"bench {model} {same} --at length=9,33 {SHORT}")
    assert said.status == 0, said
    assert "length=9" in said.out and "length=33" in said.out
    text = " ".join(said.out.split())
    assert text.count("×") == 2 and "equal within the noise floor" in text and "confidence" in text


def test_no_speed_up_of_another_model_is_printed(call: Call, model: Path, same: Path, other: Path) -> None:
    said = call(f"bench {model} {other} {same} {SHORT}")
    assert said.status == 1
    text = " ".join(said.out.split())
    assert text.count("×") == 1  # of the equal one
    assert "refused" in text and "not the same model" in text


def test_force_prints_it_with_the_verdict(call: Call, model: Path, other: Path) -> None:
    said = call(f"bench {model} {other} --force {SHORT}")
    assert said.status == 0
    text = " ".join(said.out.split())
    assert text.count("×") == 1 and "✗" in text and "over the tolerance" in text


def test_budget_decides_what_is_the_same(call: Call, model: Path, other: Path) -> None:
    assert call(f"bench {model} {other} --budget cos>=0.99 {SHORT}").status == 0
    assert call(f"bench {model} {other} --budget rel<=0.5 {SHORT}").status == 1


def test_json_has_every_round_and_no_ratio_of_what_was_refused(
    call: Call, model: Path, same: Path, other: Path
) -> None:
    said = call(f"bench {model} {same} {other} --sizes length=9,17 --json {SHORT}")
    record = json.loads(said.out)
    assert said.status == 1
    assert record["base"] == str(model)
    assert [s["sizes"]["length"] for s in record["sizes"]] == [9, 17]
    for size in record["sizes"]:
        base, equal, wrong = size["models"]
        assert all(len(m["seconds"]) == 3 for m in size["models"])
        assert base["speed_up"] is None and wrong["speed_up"] is None
        assert equal["speed_up"]["low"] <= equal["speed_up"]["median"] <= equal["speed_up"]["high"]
    assert record["validation"][str(other)]["ok"] is False
    assert [c["model"] for c in record["crossovers"]] == [str(same)]


def test_a_model_may_stand_twice(call: Call, model: Path) -> None:
    said = call(f"bench {model} {model} --json {SHORT}")
    assert json.loads(said.out)["models"] == [str(model), f"{model} (2)"]


def test_one_model_alone_is_timed(call: Call, model: Path) -> None:
    said = call(f"bench {model} {SHORT}")
    assert said.status == 0 and "ms" in said.out and "×" not in said.out


def test_data_is_timed_as_it_is(call: Call, model: Path, same: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "long.npz", x=np.zeros((1, 50, 8), np.float32))
    said = call(f"bench {model} {same} --data {tmp_path / 'long.npz'} {SHORT}")
    assert said.status == 0 and "long.npz" in said.out


def test_an_output_more_is_left_out_when_told(call: Call, model: Path) -> None:
    more = onnx.load(model)
    more.graph.output.append(onnx.helper.make_empty_tensor_value_info("weights"))
    path = model.with_name("more.onnx")
    onnx.save(onnx.shape_inference.infer_shapes(more), path)
    said = call(f"bench {model} {path} {SHORT}")
    assert said.status == 2 and "--match ORIGINAL=REWRITTEN" in said.err
    said = call(f"bench {model} {path} --match =weights --rounds 3 --seconds 0")
    assert said.status == 0 and " ".join(said.out.split()).count("×") == 1
    assert call(f"bench {model} {path} --match =nothing {SHORT}").status == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--at width=3", "there is no dimension 'width'"),
        ("--at length=x", "expected NAME=N,N"),
        ("--at length=3 --data x.npz", "contradict"),
        ("--budget nonsense", "budget"),
    ],
)
def test_bad_options_are_one_line(call: Call, model: Path, options: str, message: str) -> None:
    said = call(f"bench {model} {options} {SHORT}")
    assert said.status == 2 and message in said.err and said.err.count("\n") == 1


def test_memory_is_that_of_a_fresh_process(call: Call, model: Path) -> None:
    said = call(f"bench {model} --sizes length=2048 --rounds 3 --seconds 0 --json")
    ((row,),) = (s["models"] for s in json.loads(said.out)["sizes"])
    if row["peak_bytes"] is None:
        pytest.skip("the kernel keeps no peak that can be reset")
    assert row["peak_bytes"] > 2 * 2048 * 2048 * 4  # a batch of two maps of scores
