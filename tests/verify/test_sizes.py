from __future__ import annotations

import pytest
import torch

import rewriter
from rewriter.errors import InputError
from rewriter.program.program import Program
from rewriter.verify.sizes import dimensions, sized_cases


class Sum(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(-1)


@pytest.fixture(scope="module")
def program() -> Program:
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    return rewriter.trace(Sum(), (torch.ones(2, 5, 3),), dynamic_shapes=({0: batch, 1: length},))


def test_a_name_that_is_not_there_is_refused_with_those_that_are(program: Program) -> None:
    with pytest.raises(InputError, match=f"no dimension 'width'; .* has {', '.join(dimensions(program))}"):
        sized_cases(program, {"width": (3,)})
    fixed = rewriter.trace(Sum(), (torch.ones(2, 5, 3),))
    with pytest.raises(InputError, match="one shape only"):
        sized_cases(fixed, {"width": (3,)})


def test_cases_are_all_combinations_in_order(program: Program) -> None:
    names = dimensions(program)
    sizes = {names[0]: (2, 1), names[1]: (7, 4)}
    cases = sized_cases(program, sizes, seed=3)
    assert [tuple(c.sizes[n] for n in names) for c in cases] == [(2, 7), (2, 4), (1, 7), (1, 4)]
    (name,) = program.graph.inputs
    shapes = {c.inputs[name].shape for c in cases}
    assert len(shapes) == 4 and all(set(s[:2]) <= {1, 2, 4, 7} and s[2] == 3 for s in shapes)
    again = sized_cases(program, sizes, seed=3)
    assert all((a.inputs[name] == b.inputs[name]).all() for a, b in zip(cases, again, strict=True))


def test_without_sizes_there_is_one_case(program: Program) -> None:
    (case,) = sized_cases(program, {})
    assert set(case.sizes) == set(dimensions(program))


def test_too_many_combinations_are_refused(program: Program) -> None:
    names = dimensions(program)
    many = {n: range(1, 10) for n in names}
    with pytest.raises(InputError, match="81 combinations"):
        sized_cases(program, many)
