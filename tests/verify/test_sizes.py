from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import rewriter
from rewriter.errors import InputError
from rewriter.program.program import Program
from rewriter.verify.dimensions import by_dimension, dimensions
from rewriter.verify.inputs import generated_cases
from rewriter.verify.sizes import sized_cases


class Sum(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(-1)


@pytest.fixture(scope="module")
def program() -> Program:
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    return rewriter.trace(Sum(), (torch.ones(2, 5, 3),), dynamic_shapes=({0: batch, 1: length},))


def _names(program: Program) -> tuple[str, ...]:
    """Return the dimensions in the order of the axes, as tracing gives them names as it likes."""
    (name,) = program.graph.inputs
    return tuple(str(size) for size in program.graph.values[name].shape or () if not size.static)


def test_a_name_that_is_not_there_is_refused_with_those_that_are(program: Program) -> None:
    (name,) = program.graph.inputs
    known = ", ".join(rf"{symbol} \({axis}\)" for symbol, (axis,) in dimensions(program).items())
    assert [axis for (axis,) in dimensions(program).values()].count(f"{name}.1") == 1
    with pytest.raises(InputError, match=f"no dimension 'width'; .* has {known}"):
        sized_cases(program, {"width": (3,)})
    fixed = rewriter.trace(Sum(), (torch.ones(2, 5, 3),))
    with pytest.raises(InputError, match="one shape only"):
        sized_cases(fixed, {"width": (3,)})


def test_cases_are_all_combinations_in_order(program: Program) -> None:
    names = _names(program)
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
    names = _names(program)
    many = {n: range(1, 10) for n in names}
    with pytest.raises(InputError, match="81 combinations"):
        sized_cases(program, many)


def test_an_axis_is_as_good_as_its_name(program: Program) -> None:
    (name,) = program.graph.inputs
    by_name = sized_cases(program, {_names(program)[1]: (9,)})
    by_axis = sized_cases(program, {f"{name}.1": (9,)})
    assert by_axis[0].sizes == by_name[0].sizes
    assert by_axis[0].inputs[name].shape[1] == 9
    made = generated_cases(program, sizes={f"{name}.1": (9, 4)})
    assert [c.inputs[name].shape[1] for c in made if c.group == "random"] == [9, 4]


def test_axes_of_many_inputs_and_names_with_dots(numpy_program: Any) -> None:
    inputs = [
        ("ids.1", ("batch", "n", 3), "int64"),
        ("mask", ("batch", "n"), "int64"),
        ("past", ("batch", "2*n"), "float32"),
        ("last", ("batch", "m // 2"), "float32"),
    ]
    program = numpy_program(lambda *_: (), inputs, [])
    assert dimensions(program) == {
        "batch": ("ids.1.0", "mask.0", "past.0", "last.0"),
        "m": (),
        "n": ("ids.1.1", "mask.1"),
    }
    assert by_dimension(program, {"ids.1.1": (4,), "mask.0": (2,)}) == {"n": (4,), "batch": (2,)}
    for name, said in {
        "ids.1.2": "ids.1.2 is 3 in every input",
        "ids.1.3": "there is no axis ids.1.3; ids.1 has 3",
        "ids.1.-1": "no dimension 'ids.1.-1'",
        "ids.1": "no dimension 'ids.1'; numpy has batch (ids.1.0, mask.0, …), m, n (ids.1.1, mask.1)",
        "mask." + "9" * 5000: "no dimension",
        "past.1": "past.1 is 2*n; give n instead",
        "last.1": "last.1 is m // 2; give m instead",
    }.items():
        with pytest.raises(InputError, match=re.escape(said)):
            by_dimension(program, {name: (1,)})
    with pytest.raises(InputError, match=r"ids\.1\.1 and mask\.1 are one dimension, n"):
        by_dimension(program, {"ids.1.1": (4,), "mask.1": (4,)})
