"""Every spelling, traced by torch.export."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

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


def test_a_product_of_three_is_refused_with_the_reason() -> None:
    class Attention(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> Tensor:
            return torch.einsum("bhij,bhjd,hde->bie", (q @ k.mT).softmax(-1), v, out)

    shapes = ((2, 3, 5, 4), (2, 3, 6, 4), (2, 3, 6, 4), (3, 4, 7))
    program = rewriter.trace(Attention(), tuple(map(torch.randn, shapes)))
    assert not program.sites
    assert "another tensor are multiplied in one product" in next(
        r.reason for r in program.refused if r.missed
    )


def test_there_are_a_hundred_and_more() -> None:
    assert len({spelling.source for spelling in SPELLINGS.values()}) == len(SPELLINGS) > 250
