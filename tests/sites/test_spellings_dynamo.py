"""Every spelling, through torch's ONNX exporter that is built on torch.export."""

from __future__ import annotations

import pytest

from rewriter.program.tensors import to_numpy
from tests.sites.claims import check_found, check_rewritten
from tests.sites.spellings import SPELLINGS, Spelling
from tests.sites.spellings.export import by_dynamo

EXPORTED = {name: spelling for name, spelling in SPELLINGS.items() if "dynamo" in spelling.routes}


@pytest.mark.parametrize("spelling", EXPORTED.values(), ids=EXPORTED)
def test_spelling(spelling: Spelling) -> None:
    program = by_dynamo(spelling)
    check_found(program, spelling)
    arrays = (to_numpy(x) for x in spelling.inputs())
    check_rewritten(program, dict(zip(program.graph.inputs, arrays, strict=False)))
