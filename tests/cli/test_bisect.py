"""The command that says which sites to revert."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.verify.twelve import onnx_layers

Call = Callable[[str], Any]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Write a model of four sites, and the same with heads swapped in one of them."""
    paths = tmp_path / "original.onnx", tmp_path / "edited.onnx"
    onnx_layers(4).save(paths[0])
    onnx_layers(4, 2, "mask corner").save(paths[1])
    return paths


def test_two_models_and_the_worst_site_alone(call: Call, pair: tuple[Path, Path], tmp_path: Path) -> None:
    said = call(f"bisect {pair[0]} {pair[1]} --reproduce {tmp_path / 'alone'} --json")
    found = json.loads(said.out)
    assert said.status == 1 and found["blamed"] == ["attention.2"]
    assert found["guarantee"] == "smallest" and found["after"]["ok"]
    alone = found["reproduction"]
    assert max(alone["nodes"]) < 10 and alone["distance"]["rel"] > 1e-3
    again = call(alone["command"].removeprefix("rewriter "))
    assert again.status == 1


def test_a_plan_is_reduced_to_what_meets_the_budget(
    call: Call, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    kept = tmp_path / "kept.json"
    said = call(f"bisect {pair[0]} --apply window:window=3 --budget cos>=0.7 --kept {kept} --json")
    found = json.loads(said.out)
    assert said.status == 1 and found["blamed"] and len(found["blamed"]) < 4
    out = tmp_path / "rewritten.onnx"
    assert call(f"rewrite {pair[0]} -o {out} --plan {kept} --budget cos>=0.7").status == 0
    assert call(f"bisect {pair[0]} {out} --budget cos>=0.7").status == 0


def _state(folder: Path) -> dict[Path, tuple[int, int, int]]:
    found = {path: path.lstat() for path in folder.rglob("*")}
    return {path: (s.st_mode, s.st_size, s.st_mtime_ns) for path, s in found.items()}


def _file(folder: Path) -> Path:
    folder.write_text("mine")
    return folder


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder)
    return folder


def _pipe_inside(folder: Path) -> Path:
    folder.mkdir()
    os.mkfifo(folder / "inputs.npz")
    return folder


def _folder_inside(folder: Path) -> Path:
    (folder / "rewritten.onnx").mkdir(parents=True)
    return folder


def _link_to_nothing(folder: Path) -> Path:
    folder.symlink_to("nowhere")
    return folder


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (_file, "is no directory"),
        (_pipe, "is no directory"),
        (_link_to_nothing, "is no directory"),
        (_pipe_inside, "is not a regular file"),
        (_folder_inside, "is a directory"),
        (lambda folder: Path("/dev/null"), "is no directory"),
        (lambda folder: folder.parent, "is the input"),
        (lambda folder: folder.parent / "original.onnx" / "alone", "does not exist"),
    ],
)
def test_where_nothing_can_be_written_nothing_is(
    call: Call, pair: tuple[Path, Path], tmp_path: Path, place: Callable[[Path], Path], reason: str
) -> None:
    folder = place(tmp_path / "alone")
    before = _state(tmp_path)
    said = call(f"bisect {pair[0]} {pair[1]} --reproduce {folder}")
    assert said.status == 2 and reason in said.err and len(said.err.splitlines()) == 1
    assert _state(tmp_path) == before


@pytest.mark.parametrize("option", ["--kept", "--resume"])
@pytest.mark.parametrize("place", ["pipe", "/dev/null", "original.onnx", "x" * 300])
def test_files_that_are_none_are_not_written(
    call: Call, pair: tuple[Path, Path], tmp_path: Path, option: str, place: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    before = _state(tmp_path)
    said = call(f"bisect {pair[0]} --apply window:window=3 {option} {tmp_path / place}")
    assert said.status == 2 and f"output {tmp_path / place}"[:20] in said.err
    assert len(said.err.splitlines()) == 1
    assert _state(tmp_path) == before


def test_what_is_said_to_people(call: Call, pair: tuple[Path, Path]) -> None:
    said = call(f"bisect {pair[0]} {pair[1]}")
    assert said.status == 1 and "revert attention.2: no smaller set does" in said.out
    said = call(f"bisect {pair[0]} {pair[0]}")
    assert said.status == 0 and "nothing to revert" in said.out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("", "give REWRITTEN"),
        ("{b} --apply window:window=3", "give REWRITTEN"),
        ("{b} --kept k.json", "--kept writes what is left of a plan"),
        ("{b} --budget bogus>=1", "there is no metric"),
        ("{b} --reproduce {a}", "is no directory; give one"),
        ("--apply window:window=3@attention.9", ""),
    ],
)
def test_what_is_refused_is_one_line(
    call: Call, pair: tuple[Path, Path], arguments: str, reason: str
) -> None:
    said = call(f"bisect {pair[0]} {arguments.format(a=pair[0], b=pair[1])}")
    assert said.status == 2 and reason in said.err and "Traceback" not in said.err


def test_an_output_more_is_left_out_when_told(call: Call, pair: tuple[Path, Path], tmp_path: Path) -> None:
    more = onnx.load(pair[1])
    more.graph.output.append(onnx.helper.make_empty_tensor_value_info(more.graph.node[-1].input[0]))
    more.graph.output.reverse()
    onnx.save(onnx.shape_inference.infer_shapes(more), pair[1])
    said = call(f"bisect {pair[0]} {pair[1]}")
    assert said.status == 2 and "--match ORIGINAL=REWRITTEN" in said.err
    told = f"--match ={more.graph.output[0].name}"
    said = call(f"bisect {pair[0]} {pair[1]} {told} --reproduce {tmp_path / 'alone'} --json")
    assert said.status == 1 and json.loads(said.out)["blamed"] == ["attention.2"], said.err
    page = tmp_path / "page.html"
    said = call(f"validate {pair[0]} {pair[1]} {told} --report {page}")
    assert said.status == 1 and "to blame: attention.2" in said.out
    assert page.exists()


def test_validation_that_fails_names_the_site(call: Call, pair: tuple[Path, Path]) -> None:
    said = call(f"validate {pair[0]} {pair[1]}")
    assert said.status == 1 and "to blame: attention.2" in said.out
    said = call(f"validate {pair[0]} {pair[1]} --json")
    assert json.loads(said.out)["per_site"]["blamed"] == ["attention.2"]
    assert json.loads(call(f"validate {pair[0]} {pair[0]} --json").out)["per_site"] is None
