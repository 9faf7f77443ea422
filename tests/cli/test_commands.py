from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

INSPECTED = {"model", "format", "nodes", "coverage", "sites", "refused", "blocks", "fusion"}
SITE = set("id kind heads kv_heads query_length key_length qk_dim v_dim normalizer scale mask anchor".split())

Call = Callable[[str], Any]


def left_behind(model: Path) -> list[str]:
    return sorted(set(os.listdir(model.parent)) - {model.name})


def test_inspect_prints_a_table_and_an_object(call: Call, model: Path) -> None:
    said = call(f"inspect {model}")
    assert (said.status, said.err) == (0, "")
    assert "attention.0" in said.out
    record = json.loads(call(f"inspect {model} --json").out)
    assert record.keys() == INSPECTED
    (site,) = record["sites"]
    assert site.keys() >= SITE | {"region_nodes"}
    assert (site["query_length"], site["heads"], site["qk_dim"]) == ("length", 1, 8)
    assert site["scale"] == pytest.approx(8**-0.5)
    assert record["format"] == "onnx"


@pytest.mark.parametrize(("required", "status"), [(0, 0), (1, 0), (2, 1)])
def test_required_sites(call: Call, model: Path, required: int, status: int) -> None:
    said = call(f"inspect {model} --require-sites {required} --json")
    assert said.status == status
    assert ("error" in json.loads(said.out)) == (status == 1)


def test_an_exact_rewrite_is_written_with_its_plan(call: Call, model: Path) -> None:
    out = model.with_name("out.onnx")
    before = model.read_bytes()
    said = call(f"rewrite {model} -o {out} --apply softmax")
    assert said.status == 0, said.err + said.out
    assert "equal within the noise floor" in said.out
    assert left_behind(model) == ["out.onnx", "out.onnx.plan.json"]
    assert model.read_bytes() == before
    assert call(f"validate {model} {out}").status == 0
    again = model.with_name("again.onnx")
    record = json.loads(call(f"rewrite {model} -o {again} --plan {out}.plan.json --json").out)
    assert record["written"] is True and record["output"] == str(again)
    assert record["rewriting"]["sites"][0]["committed"] is True
    assert again.read_bytes() == out.read_bytes()


def test_an_approximation_asks_for_a_budget(call: Call, model: Path) -> None:
    out = model.with_name("out.onnx")
    command = f"rewrite {model} -o {out} --apply window:window=3"
    said = call(f"{command} --json")
    assert said.status == 2
    assert "--budget" in json.loads(said.out)["error"] and "--no-budget" in said.err
    assert left_behind(model) == []
    assert call(f"{command} --no-budget").status == 0
    assert left_behind(model) == ["out.onnx", "out.onnx.plan.json"]


@pytest.mark.parametrize(
    ("budget", "status"), [("cos>=0.999999", 1), ("cos>=-1", 0), ("max_abs<=100,rel<=500%", 0)]
)
def test_over_budget_writes_nothing(call: Call, model: Path, budget: str, status: int) -> None:
    out = model.with_name("out.onnx")
    said = call(f"rewrite {model} -o {out} --apply window:window=3 --budget {budget} --json")
    record = json.loads(said.out)
    assert said.status == status
    assert record["written"] is (status == 0)
    assert left_behind(model) == ([] if status else ["out.onnx", "out.onnx.plan.json"])
    assert record["validation"]["ok"] is (status == 0)


def test_a_budget_is_judged_on_the_data(call: Call, model: Path) -> None:
    short = model.with_name("short.npz")
    np.savez(short, x=np.random.default_rng(0).standard_normal((1, 2, 8)).astype(np.float32))
    out = model.with_name("out.onnx")
    command = f"rewrite {model} -o {out} --apply window:window=3 --budget cos>=0.999999"
    assert call(command).status == 1
    assert call(f"{command} --data {short}").status == 0  # a window of three hides nothing of two tokens


def test_validate_tells_two_models_apart(call: Call, model: Path) -> None:
    out, page = model.with_name("out.onnx"), model.with_name("r.html")
    call(f"rewrite {model} -o {out} --apply window:window=3 --no-budget")
    assert call(f"validate {model} {out} --report {page}").status == 0
    assert "window:window=3" in page.read_text()
    said = call(f"validate {model} {out} --budget sqnr>=200dB --source {model} --json")
    record = json.loads(said.out)
    assert (said.status, record["ok"]) == (1, False)
    assert [s["step"] for s in record["steps"]] == ["source → original", "source → rewritten"]
    assert record["steps"][0]["outputs"]["y"]["max_abs"] == 0


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("", "--apply FORM"),
        ("--apply softmax --plan p.json", "--apply FORM"),
        ("--apply nonsense", "no form 'nonsense'"),
        ("--apply window:window=0", "window is 0"),
        ("--apply softmax@attention.7", "there is no site attention.7"),
        ("--apply softmax --budget nice", "not METRIC<=X"),
        ("--apply softmax --budget cos>=0.9 --no-budget", "contradict"),
        ("--plan missing.json", "cannot be read"),
        ("--apply softmax --data missing.npz", "no such file"),
        ("--apply softmax --target torch", "can be written for onnx"),
        ("--apply softmax -o {model}", "is the input"),
        ("--apply softmax -o {folder}/none/out.onnx", "does not exist"),
        ("--apply softmax -o {folder}/out.pt2", "saved as .onnx"),
        ("--apply softmax --resume {model}", "is the input"),
        ("--apply softmax --resume {folder}/out.onnx", "is written with the model"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    call: Call, model: Path, options: str, complaint: str
) -> None:
    options = options.format(model=model, folder=model.parent)
    output = "" if "-o " in options else f"-o {model.parent}/out.onnx"
    said = call(f"rewrite {model} {output} {options}")
    assert said.status == 2
    assert complaint in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert said.out == ""
    assert left_behind(model) == []


def test_an_interrupted_choice_says_where_it_is_recorded(
    call: Call, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, resume: Path, **__: object) -> None:
        resume.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("rewriter.engine.rewrite", interrupted)
    work = model.parent / "work"
    said = call(f"rewrite {model} -o {model.parent}/out.onnx --apply softmax --resume {work}")
    assert said.status == 130
    assert "the same command goes on from there" in said.err and "work" in said.err


@pytest.mark.parametrize("kind", ["text", "truncated", "pickle", "directory", "missing"])
def test_files_that_are_no_models(call: Call, model: Path, kind: str) -> None:
    bad = model.with_name("bad.onnx")
    if kind == "text":
        bad.write_text("not a model")
    elif kind == "truncated":
        bad.write_bytes(model.read_bytes()[:300])
    elif kind == "pickle":
        bad = model.with_name("bad.pt")
        bad.write_bytes(b"\x80\x02}q\x00.")
    elif kind == "directory":
        bad.mkdir()
    before = left_behind(model)
    for command in ("inspect {bad}", "rewrite {bad} -o {out} --apply softmax", "validate {model} {bad}"):
        said = call(command.format(bad=bad, model=model, out=model.with_name("out.onnx")))
        assert said.status == 2, command
        assert str(bad) in said.err.replace("\n", "")
        assert len(said.err.strip().splitlines()) == 1
    assert left_behind(model) == before


def test_models_of_the_zoo_have_names(call: Call) -> None:
    said = call("inspect zoo:digits-vit --require-sites 4 --json")
    assert said.status == 0, said.err
    assert json.loads(said.out)["format"] == "fx"
    assert "digits-vit" in call("inspect zoo:psychic").err


def test_demo_tells_the_whole_story(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from rewriter.cli import demo

    for name, value in (("LENGTHS", (96, 130)), ("PIECES", 1), ("SECONDS", 0.0)):
        monkeypatch.setattr(demo, name, value)
    record = json.loads(call("demo --rounds 3 --json").out)
    assert [v["form"] for v in record["variants"]] == ["original", *demo.FORMS]
    original, exact, window = record["variants"]
    assert all(v["ok"] for v in record["variants"])
    assert exact["sites"] == window["sites"] == 4
    assert exact["probes"] > 4
    assert exact["bits_per_byte"] == pytest.approx(original["bits_per_byte"], abs=1e-4)
    assert set(window["seconds"]) == {"96", "130"}
    assert "noise floor" in exact["verdict"]
