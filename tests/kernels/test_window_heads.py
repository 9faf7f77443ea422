"""Windows that differ by group of heads, such as horizontal and vertical stripes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from rewriter.algebra.sizes import Size
from rewriter.forms import Canonical, Fidelity
from rewriter.kernels.window.form import Window
from rewriter.lower.triton_emitter import TritonEmitter
from rewriter.sites.site import Band, Facts, Geometry
from tests.kernels.operands import CAUSAL, by_hand, canonical, emitter_of, operands, site

Sees = Callable[[int, int], bool]


def stripes(i: int, j: int, along: int) -> bool:
    """Whether tokens of a grid of 4 × 6 lie in one stripe: two rows, or two columns."""
    (r, c), (s, d) = divmod(i, 6), divmod(j, 6)
    return r // 2 == s // 2 if along == 0 else c // 2 == d // 2


FORMS: dict[str, tuple[Window, int, list[Sees]]] = {
    "stripes": (
        Window("2x6/4x2", 0, "4x6", stride="2x6/4x2"),
        24,
        [lambda i, j: stripes(i, j, 0), lambda i, j: stripes(i, j, 1)],
    ),
    "narrow and wide": (
        Window("3/7", 0),
        13,
        [lambda i, j: abs(i - j) <= 1, lambda i, j: abs(i - j) <= 3],
    ),
    "four groups": (
        Window("1/3/5/7", 0, dilation=1),
        9,
        [lambda i, j, n=n: abs(i - j) <= n for n in range(4)],  # type: ignore[misc]
    ),
    "near and far": (
        Window(3, 0, dilation="1/3"),
        13,
        [lambda i, j: abs(i - j) <= 1, lambda i, j: (i - j) in (-3, 0, 3)],
    ),
}


def want(a: Canonical, sees: list[Sees]) -> torch.Tensor:
    """Return the heads of each group from attention of all heads."""
    share = a.q.shape[1] // len(sees)
    every = [by_hand(a, see)[:, k * share : (k + 1) * share] for k, see in enumerate(sees)]
    return torch.cat(every, 1)


@pytest.mark.parametrize(("form", "length", "sees"), FORMS.values(), ids=list(FORMS))
@pytest.mark.parametrize("bias", [None, "keys", "full"])
def test_each_group_has_its_own_window(form: Window, length: int, sees: list[Sees], bias: str | None) -> None:
    a = canonical(length, batch=1, bias=bias, dtype=torch.float64)
    by_definition = form.definition(operands(a))
    torch.testing.assert_close(
        by_definition, want(a, sees).nan_to_num(), rtol=1e-10, atol=1e-10, equal_nan=True
    )
    for groups in (1, 2, 4):
        a = canonical(length, groups=groups, bias=bias, sink="heads", softcap=0.7)
        found = form.emit(emitter_of(a), a)
        torch.testing.assert_close(found, form.definition(operands(a)), rtol=1e-5, atol=1e-5)
        kernel = form.emit_kernel(emitter_of(a, TritonEmitter), a)  # type: ignore[arg-type]
        torch.testing.assert_close(kernel, found, rtol=1e-4, atol=1e-5)


def test_causal_groups_of_any_length() -> None:
    form = Window("2/5", 1)
    for length in (1, 2, 9, 40):
        a = canonical(length, band=CAUSAL, dynamic=True)
        found = form.emit(emitter_of(a), a)
        torch.testing.assert_close(found, form.definition(operands(a)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hiding", [-math.inf, -64.0])
@pytest.mark.parametrize("form", [Window("9/2", 0), Window("5/2", 1), Window("9/20", 0)])
def test_a_group_that_holds_the_band_does_as_the_others_with_hidden_keys(form: Window, hiding: float) -> None:
    band = Band(Size.of(0), 4, 0)
    a = canonical(12)
    i, j = torch.arange(12)[:, None], torch.arange(12)
    hidden = (j > i) | (j < i - 4) | (j >= 6)  # the last queries see nothing
    bias = torch.zeros(2, 1, 12, 12).masked_fill(hidden, hiding)
    a = replace(a, bias=bias, implied=band, empty_row="nan" if hiding == -math.inf else "never")
    found = form.emit(emitter_of(a), a)
    kernel = form.emit_kernel(emitter_of(a, TritonEmitter), a)  # type: ignore[arg-type]
    exact = form.fidelity(site(queries=12, keys=12, facts=Facts(band=band))) is Fidelity.EXACT
    want = by_hand(a, lambda i, j: True).float() if exact else form.definition(operands(form.adapt(a)))
    for result in (found, kernel):
        torch.testing.assert_close(result, want, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_legality_limit_and_cost() -> None:
    shown = Geometry(1, (Size.of(3), Size.of(5)))
    form = Window("1x5/3x1", grid="auto").at(site(geometry=shown))
    assert form == Window("1x5/3x1", 1, "3x5")
    assert "not 3 groups" in (Window("1/2/3").why_not(site()) or "")
    assert "not 2 groups" in (Window("1/2").why_not(site(heads=Size.symbol("h"))) or "")
    assert "cross-attention" in (Window("1/2").why_not(site(queries=7)) or "")
    assert Window("1/2").why_not(site()) is None
    causal = site(facts=Facts(band=CAUSAL))
    assert Window("16/99").fidelity(causal) is Fidelity.EXACT
    assert Window("16/15").fidelity(causal) is Fidelity.TRAINING_FREE
    assert Window("4/8").at(causal) == Window("4/8", 4)
    long = site(queries=4096, keys=4096)
    one, other, both = (Window(w, 0).cost(long) for w in (65, 257, "65/257"))
    assert int(one.flops) < int(both.flops) < int(other.flops)
    assert both.time is not None and one.time is not None and both.time != one.time


WRONG = ["7x/7", "7/", "auto/7", "7/0"]


@pytest.mark.parametrize("window", WRONG)
def test_windows_that_cannot_be_read(window: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        Window(window)


def test_groups_are_as_many_in_every_parameter() -> None:
    with pytest.raises(ValueError, match="as many groups"):
        Window("4/8/12", stride="2/4")
    with pytest.raises(ValueError, match="at most the window"):
        Window("4/8", stride="2/9")
    form = Window("4x4/8x8", stride="2/4", grid="16x16")
    assert Window.parse(str(form).partition(":")[2].split(",")) == form
    assert replace(form, sinks=2).sinks == 2
