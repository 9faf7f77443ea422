"""Rounding to 8 bits, and what it costs a site."""

from __future__ import annotations

import pytest
import torch

from rewriter.kernels.clipped.form import Clipped
from rewriter.kernels.softmax.form import Softmax
from rewriter.verify.int8 import int8_error, quantised
from tests.kernels.operands import canonical, operands


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shift", [0.0, 5.0, -5.0])
def test_no_number_moves_by_more_than_half_a_level(symmetric: bool, shift: float) -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)) + shift
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    level = max(-low, high) / 127 if symmetric else (high - low) / 255
    found = quantised(x, symmetric)
    edge = 0 if symmetric else level / 2  # the shift is rounded to a whole level, too
    assert float((found - x).abs().max()) <= level / 2 * (1 + 1e-5) + edge
    assert len(set(found.tolist())) <= 256
    assert torch.allclose(quantised(found, symmetric), found, atol=level / 100)


@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_stays_zero(symmetric: bool) -> None:
    assert quantised(torch.tensor([0.0, 3.0, 7.0]), symmetric)[0] == 0
    assert (quantised(torch.zeros(3), symmetric) == 0).all()


def test_asymmetric_levels_are_finer_for_numbers_of_one_sign() -> None:
    x = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    errors = [float((quantised(x, s) - x).norm()) for s in (True, False)]
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_stays(dtype: torch.dtype) -> None:
    assert quantised(torch.ones(3, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("wrong", [torch.inf, torch.nan])
def test_numbers_without_a_range_are_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        quantised(torch.tensor([1.0, wrong]))


@pytest.mark.parametrize("symmetric", [True, False])
def test_an_outlier_costs_the_others_their_levels(symmetric: bool) -> None:
    x = operands(canonical(20))
    before = int8_error(Softmax(), x, symmetric)
    assert before.rounding == before.total and 0 < before.total < 0.05
    assert len(set(quantised(x.v, symmetric)[1].flatten().tolist())) > 100
    x.v[0, 0, 0, 0] = 1000
    assert len(set(quantised(x.v, symmetric)[1].flatten().tolist())) < 4


def test_the_total_holds_what_the_form_itself_changes() -> None:
    x = operands(canonical(20))
    mild, strong = int8_error(Clipped(gamma=-1e-6), x), int8_error(Clipped(gamma=-0.1), x)
    assert mild.total == pytest.approx(int8_error(Softmax(), x).total, rel=0.01)
    assert strong.total > 10 * mild.total and strong.rounding < strong.total
