"""The page about blocks says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from rewriter.blocks import KINDS
from tests.blocks.test_find import FIRES

PAGE = (Path(__file__).parents[2] / "docs" / "blocks.md").read_text(encoding="utf-8")


def test_every_kind_is_on_the_page_as_the_code_has_it() -> None:
    rows = dict(
        re.findall(r"^\| `([\w-]+)` \| (.*?) \|", PAGE.split("## What is rewritten")[0], re.MULTILINE)
    )
    assert rows == KINDS


def test_every_mechanism_that_is_found_is_on_the_page() -> None:
    assert all(name in PAGE for found in FIRES.values() for _, name in found if name is not None)
