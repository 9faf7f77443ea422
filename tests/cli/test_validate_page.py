from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.cli.conftest import Call
from tests.verify.twelve import onnx_layers


def test_page_has_sites_graphs_times_and_where_it_is_from(call: Call, model: Path, tmp_path: Path) -> None:
    new, page = tmp_path / "new.onnx", tmp_path / "page.html"
    assert call(f"rewrite {model} -o {new} --apply window:window=3 --no-budget").status == 0
    said = call(f"validate {model} {new} --at length=33 --report {page}")
    assert said.status == 0
    text = page.read_text(encoding="utf-8")
    for part in ('id="sites"', 'id="attention"', 'id="graph"', 'id="time"', "sha256", "window:window=3"):
        assert part in text, part
    assert "rewriter validate" in text and "length=33" in text
    assert "<strong>Softmax</strong>" in text and "×" in text


def test_heads_that_are_asked_for_are_shown_and_no_others(call: Call, tmp_path: Path) -> None:
    model, page = tmp_path / "layers.onnx", tmp_path / "page.html"
    onnx_layers(3).save(model)
    said = call(f"validate {model} {model} --heads attention.1:1,attention.1:0 --report {page}")
    assert said.status == 0, said.err
    text = page.read_text(encoding="utf-8")
    shown = re.findall("<figcaption>(attention[^<]*)</figcaption>", text)
    assert shown == ["attention.1, head 1", "attention.1, head 0"]
    assert "largest error of each site" not in text
    page.unlink()
    for heads, reason in {
        "attention.9:0": "no site 'attention.9'; it has attention.0, attention.1, attention.2",
        "attention.0:99": "heads, numbered from 0, so no head 99",
        "attention.0": "expected SITE:HEAD",
        "attention.0:-1": "expected SITE:HEAD",
        ",": "expected SITE:HEAD",
    }.items():
        said = call(f"validate {model} {model} --heads {heads} --report {page}")
        assert said.status == 2 and reason in said.err and not page.exists()
    said = call(f"validate {model} {model} --heads attention.0:0")
    assert said.status == 2 and "give --report" in said.err


@pytest.fixture
def wrong(model: Path) -> Path:
    changed = onnx.load(model)
    for tensor in changed.graph.initializer:
        if tensor.name == "scale":
            tensor.CopyFrom(numpy_helper.from_array(np.array(0.5, np.float32), "scale"))
    path = model.with_name("wrong.onnx")
    onnx.save(changed, path)
    return path


def test_page_of_a_failure_blames_the_site_and_gives_no_ratio(
    call: Call, model: Path, wrong: Path, tmp_path: Path
) -> None:
    page, tests = tmp_path / "page.html", tmp_path / "tests.xml"
    said = call(f"validate {model} {wrong} --report {page} --junit {tests}")
    assert said.status == 1
    text = page.read_text(encoding="utf-8")
    assert "Failed" in text and "✗ to blame" in text
    assert "% confidence" not in text and "<dt>Speed</dt>" not in text
    suite = ElementTree.parse(tests).getroot()
    assert int(suite.attrib["failures"]) >= 1
    assert any(
        t.attrib["classname"] == "site" and t.find("failure") is not None for t in suite.iter("testcase")
    )


def test_junit_of_equal_models_has_no_failure(call: Call, model: Path, tmp_path: Path) -> None:
    tests = tmp_path / "tests.xml"
    assert call(f"validate {model} {model} --junit {tests}").status == 0
    suite = ElementTree.parse(tests).getroot()
    assert suite.attrib["failures"] == "0" and int(suite.attrib["tests"]) > 3


def test_junit_is_never_the_input(call: Call, model: Path) -> None:
    before = model.read_bytes()
    said = call(f"validate {model} {model} --junit {model}")
    assert said.status == 2 and "never modified" in said.err and model.read_bytes() == before


def test_data_is_hashed_whatever_is_made_of_it(call: Call, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a few words", encoding="utf-8")
    data = f"text:{text}:tokenizer=bytes,length=5"
    said = call(f"validate zoo:byte-lm zoo:byte-lm --data {data} --json")
    assert said.status == 0, said.err
    (file,) = json.loads(said.out)["provenance"]["files"]
    assert (file["path"], file["bytes"]) == (str(text), 11)
