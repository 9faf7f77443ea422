from __future__ import annotations

import pytest
import torch

import rewriter
from rewriter.errors import InputError
from rewriter.program.program import Program
from rewriter.verify.sizes import dimensions, parse_sizes, sized_cases


class Sum(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(-1)


@pytest.fixture(scope="module")
def program() -> Program:
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    return rewriter.trace(Sum(), (torch.ones(2, 5, 3),), dynamic_shapes=({0: batch, 1: length},))


@pytest.mark.parametrize(
    "text",
    (
        "=4 length= length=0 length=-1 length=1.5 length=1e3 length=٣ length=1_0 width=3 length"
        " length=3;4 length=9999999999999"
    ).split(),
)
def test_what_is_no_size_is_refused_with_what_there_is(text: str) -> None:
    with pytest.raises(InputError, match="sizes"):
        parse_sizes([text], ["batch", "length"])


def test_a_dimension_stands_once() -> None:
    with pytest.raises(InputError, match="twice"):
        parse_sizes(["length=3", "length=4"], ["length"])


def test_without_a_name_there_must_be_one_dimension() -> None:
    assert parse_sizes(["3,4"], ["length"]) == {"length": (3, 4)}
    with pytest.raises(InputError, match="batch, length"):
        parse_sizes(["3,4"], ["batch", "length"])
    with pytest.raises(InputError, match="one shape only"):
        parse_sizes(["3,4"], [])


def test_cases_are_all_combinations_in_order(program: Program) -> None:
    names = dimensions(program)
    sizes = [f"{names[0]}=2,1", f"{names[1]}=7,4"]
    cases = sized_cases(program, sizes, seed=3)
    assert [tuple(c.sizes[n] for n in names) for c in cases] == [(2, 7), (2, 4), (1, 7), (1, 4)]
    (name,) = program.graph.inputs
    shapes = {c.inputs[name].shape for c in cases}
    assert len(shapes) == 4 and all(set(s[:2]) <= {1, 2, 4, 7} and s[2] == 3 for s in shapes)
    again = sized_cases(program, sizes, seed=3)
    assert all((a.inputs[name] == b.inputs[name]).all() for a, b in zip(cases, again, strict=True))


def test_without_sizes_there_is_one_case(program: Program) -> None:
    (case,) = sized_cases(program, [])
    assert set(case.sizes) == set(dimensions(program))


def test_too_many_combinations_are_refused(program: Program) -> None:
    names = dimensions(program)
    many = [f"{n}={','.join(map(str, range(1, 10)))}" for n in names]
    with pytest.raises(InputError, match="81 combinations"):
        sized_cases(program, many)
