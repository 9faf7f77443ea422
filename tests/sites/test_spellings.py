"""Every spelling, traced by torch.export."""

from __future__ import annotations

import pytest

import rewriter
from rewriter.program.tensors import to_numpy
from tests.sites.claims import check_found, check_rewritten
from tests.sites.spellings import SPELLINGS, Spelling


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_spelling(spelling: Spelling) -> None:
    inputs = spelling.inputs()
    program = rewriter.trace(spelling.module(), inputs)
    check_found(program, spelling)
    arrays = (to_numpy(x) for x in inputs)
    check_rewritten(program, dict(zip(program.graph.inputs, arrays, strict=False)))


def test_there_are_a_hundred_and_more() -> None:
    assert len({spelling.source for spelling in SPELLINGS.values()}) == len(SPELLINGS) > 250
