"""The pages in ``docs/results``: whole, small, and from nobody's machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.house.source import ROOT
from tests.report.test_validation_page import Page

PAGES = sorted((ROOT / "docs" / "results").glob("*.html"))


def test_there_are_pages() -> None:
    assert {"dinov2", "ppocr", "smollm2"} == {p.stem for p in PAGES}


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_page_is_whole_and_small(path: Path) -> None:
    assert path.stat().st_size < 1_000_000
    text = path.read_text(encoding="utf-8")
    found = Page(text)
    sections = {a.get("id") for a in found.named("section")}
    assert sections >= {"budget", "outputs", "sites", "attention", "graph", "time", "inputs", "provenance"}
    assert found.named("script") == [] and text.count("sha256") >= 1


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_page_says_how_it_was_made_and_nothing_of_the_machine(path: Path) -> None:
    from benchmarks.validations import COMMANDS

    text = "".join(Page(path.read_text(encoding="utf-8")).text)
    _, validate = COMMANDS[path.stem]
    assert f"rewriter {validate}" in text.replace("'", "")
    assert not re.search(r"(?<![\w.])/(?:root|home|tmp|opt|work|usr)/", text)
