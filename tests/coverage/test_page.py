from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.coverage.forms import FORMS
from benchmarks.coverage.page import Entry, page, totals
from benchmarks.coverage.records import Capture, Case, Raised

SITE: dict[str, Any] = {"kind": "attention", "traits": ["sink"], "mask": "causal", "anchor": "n"}
REFUSAL = {"anchor": "m", "at": None, "reason": "a | b of 7", "nearest": "pooling", "reached": "scores"}
CASE = Case("library", "one", "fx-eager")
DONE = Entry(CASE, Capture("done", expected=2), Raised("done", sites=[SITE, SITE], seconds=0.5))
SAME = Entry(replace(CASE, form="fx-sdpa"), Capture("done", expected=2), Raised("done", sites=[SITE, SITE]))
SHORT = Entry(
    replace(CASE, architecture="two"),
    Capture("done", expected=3),
    Raised("done", sites=[SITE], refused=[{**REFUSAL, "missed": True}]),
)
BROKEN = Entry(
    replace(CASE, architecture="three"),
    Capture("export", "Error: /some/file.py broke, see https://host/page"),
    None,
)
UNREAD = Entry(replace(CASE, architecture="four"), Capture("done"), Raised("load", "Error: damaged"))
WITHOUT = Entry(replace(CASE, architecture="five"), Capture("not offered", "none"), None)


def test_totals_count_what_was_raised() -> None:
    sums = totals([DONE, SAME, SHORT, BROKEN, UNREAD, WITHOUT])
    assert (sums.architectures, sums.graphs, sums.sites, sums.missed) == (2, 3, 5, 1)
    assert sums.coverage == 5 / 6
    assert (sums.seen, sums.found) == (7, 5)


def test_no_failure_is_hidden() -> None:
    text = page([DONE, SAME, SHORT, BROKEN, UNREAD, WITHOUT], "versions")
    assert "| library | three | FX eager | export | Error: file.py broke, see https://host/page |" in text
    assert "| library | four | FX eager | load | Error: damaged |" in text
    assert "No SDPA implementation is offered by: five." in text
    assert "| two | FX eager | `m` | pooling | scores | a \\| b of 7 |" in text
    assert "| two | FX eager | 3 | 1 | 1 | 1 | not explained |" in text


def test_forms_with_the_same_findings_share_a_row() -> None:
    text = page([DONE, SAME], "versions")
    assert "| one | FX eager, FX SDPA | 2 | attention (sink) | causal | 0 |  | 0.50 |" in text


def test_architectures_in_all_forms_are_counted() -> None:
    every = [Entry(replace(CASE, form=form), DONE.capture, DONE.raised) for form in FORMS]
    assert "1 architectures are there in all 4 forms." in page([*every, SHORT], "versions")
    assert "0 architectures are there in all 4 forms." in page([DONE, SAME, SHORT], "versions")


def test_the_page_is_the_same_for_the_same_results() -> None:
    assert page([DONE, SHORT], "v") == page([DONE, SHORT], "v")
    assert page([DONE], "v").endswith("|\n")
