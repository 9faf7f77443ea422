"""What goes wrong at one site of a model that people use is found, and blamed on that site."""

from __future__ import annotations

import pytest
import torch

import rewriter
from rewriter.verify.lockstep import per_site
from tests.verify.planted.architectures import ARCHITECTURES, captured
from tests.verify.planted.plant import FAULTS, first_case, with_epsilon

torch.set_num_threads(1)


MODELS = [*((name, "fx") for name in ARCHITECTURES), ("llama", "onnx"), ("bart", "onnx")]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("name", "format_"), MODELS)
def test_a_fault_is_found_and_blamed_on_its_site(name: str, format_: str, fault: str) -> None:
    original = captured(name, format_)
    site = original.sites[len(original.sites) // 2]
    faulty = FAULTS[fault](original, site)
    report = rewriter.validate(original, faulty)
    assert not report.ok, report.verdict
    found = per_site(original, faulty, [first_case(original)], statistics=False)
    assert found.blamed == (site.id,)


@pytest.mark.parametrize("format_", ["fx", "onnx"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_same_epsilon_is_no_fault(name: str, format_: str) -> None:
    """Planting itself changes nothing."""
    original = captured(name, format_)
    same = with_epsilon(lambda epsilon: epsilon, original, original.sites[-1])
    report = rewriter.validate(original, same)
    assert report.ok and {o.distance.max_abs for c in report.cases for o in c.outputs if o.distance} == {0.0}
    assert per_site(original, same, [first_case(original)], statistics=False).blamed == ()
