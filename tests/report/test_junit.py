from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from rewriter.report.junit import junit
from rewriter.verify.validation import CaseReport, OutputReport
from tests.report.records import HOSTILE, failing, full_report


def suite(text: str) -> ElementTree.Element:
    found = ElementTree.fromstring(text)  # parsed as bytes of its own declaration
    assert found.tag == "testsuite"
    tests = found.findall("testcase")
    for kind, tag in (("failures", "failure"), ("skipped", "skipped")):
        assert int(found.attrib[kind]) == sum(t.find(tag) is not None for t in tests)
    assert int(found.attrib["tests"]) == len(tests)
    return found


def test_every_budget_input_and_judged_site_is_a_test() -> None:
    found = suite(junit(full_report()))
    names = [(t.attrib["classname"], t.attrib["name"]) for t in found.findall("testcase")]
    assert names == [
        ("budget", "cos>=0.99"),
        ("budget", "sqnr>=30dB"),
        ("budget", "rel<=0.01"),
        ("random", "random, length=33"),
        ("adversarial", "huge inputs"),
        ("data", "logits.npz"),
    ]
    assert found.attrib["failures"] == "0" and found.attrib["skipped"] == "1"
    properties = {p.attrib["name"]: p.attrib["value"] for p in found.iter("property")}
    assert properties["task.wer"] == "0.03 to 0.034" and properties["seed"] == "3"


def test_what_failed_says_why() -> None:
    found = suite(junit(failing(full_report())))
    failed = {
        t.attrib["name"]: failure.attrib["message"]
        for t in found.findall("testcase")
        if (failure := t.find("failure")) is not None
    }
    assert set(failed) == {"cos>=0.99", "attention.11"}
    assert "misses cos>=0.99" in failed["cos>=0.99"] and "tolerance 1e-5" in failed["attention.11"]


def test_a_report_that_is_not_ok_always_has_a_failure() -> None:
    found = suite(junit(replace(full_report(), ok=False, verdict="something else")))
    assert [t.attrib["name"] for t in found.iter("testcase") if t.find("failure") is not None] == [
        "logits-window.onnx"
    ]


@pytest.mark.parametrize("name", [HOSTILE, "\x00\x1b[31m\ud800\ufffe", "]]>", "\U0001f600"])
def test_hostile_names_are_well_formed(name: str) -> None:
    text = junit(full_report(name=name))
    text.encode("utf-8")
    assert any(name[:2].replace("\x00\x1b", "??") in t.attrib["name"] for t in suite(text).iter("testcase"))


def test_outputs_that_fail_are_named() -> None:
    outputs = (
        OutputReport("a", None, 0.75, None, False),
        OutputReport("b", None, 1.0, None, True),
    )
    case = CaseReport("x", "random", outputs, None, False)
    found = suite(junit(replace(full_report(), ok=False, budget=(), cases=(case,))))
    (failure,) = found.iter("failure")
    assert failure.attrib["message"] == "a: 25.00% of the elements differ"
