"""How many first tokens stay connected when nobody says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rewriter.algebra.sizes import Size
from rewriter.forms import Form
from rewriter.kernels.pooled.form import Pooled
from rewriter.kernels.window import protected
from rewriter.kernels.window.form import Window
from rewriter.sites.site import Band, Facts, Geometry
from tests.kernels.operands import CAUSAL, by_hand, canonical, emitter_of, operands, site

GRID = Geometry(1, (Size.of(3), Size.of(5)))

PLACED: dict[str, tuple[Form, dict[str, Any], int]] = {
    "causal": (Window(4), {"facts": Facts(band=CAUSAL)}, 4),
    "causal, dilated": (Window(3, dilation=2), {"facts": Facts(band=CAUSAL)}, 4),
    "causal, of any length": (Window(4), {"facts": Facts(band=CAUSAL), "queries": "n", "keys": "n"}, 4),
    "both sides": (Window(4), {}, 0),
    "tokens before a grid": (Window(4), {"geometry": GRID}, 1),
    "on its grid": (Window(3, grid="auto"), {"geometry": GRID}, 1),
    "on a grid that the graph does not show": (Window(3, grid="4x4"), {}, 0),
    "nothing is hidden": (Window(16), {"facts": Facts(band=CAUSAL)}, 0),
    "its own window": (Window(5), {"facts": Facts(band=Band(Size.of(0), 4, 0))}, 0),
    "the window that it is proved to be": (Window("auto"), {"facts": Facts(band=Band(Size.of(0), 4, 0))}, 0),
    "as given": (Window(4, 0), {"facts": Facts(band=CAUSAL)}, 0),
    "averages, causal": (Pooled(8, 2, 4), {"facts": Facts(band=CAUSAL, only_band=True)}, 4),
    "averages, a short stride": (Pooled(8, 2, 2), {"facts": Facts(band=CAUSAL, only_band=True)}, 4),
    "averages, both sides": (Pooled(8, 2), {}, 0),
    "averages on its grid": (Pooled(2, 1, grid="auto"), {"geometry": GRID}, 1),
    "averages, as given": (Pooled(8, 2, 4, 0), {"facts": Facts(band=CAUSAL, only_band=True)}, 0),
    "nothing is averaged": (Pooled(16, 4), {"facts": Facts(band=CAUSAL, only_band=True)}, 0),
}


@pytest.mark.parametrize(("form", "what", "sinks"), PLACED.values(), ids=list(PLACED))
def test_without_data_the_site_decides(form: Form, what: dict[str, Any], sinks: int) -> None:
    assert form.at(site(**what)).parameters["sinks"] == sinks


def test_averages_without_a_number_are_those_with_it() -> None:
    a = canonical(30, band=CAUSAL)
    found = Pooled(8, 2, 4).emit(emitter_of(a), a)
    torch.testing.assert_close(found, Pooled(8, 2, 4, 4).emit(emitter_of(a), a))
    torch.testing.assert_close(found, Pooled(8, 2, 4).definition(operands(a)), rtol=1e-5, atol=1e-5)


def test_a_causal_window_keeps_four_tokens_by_itself() -> None:
    a = canonical(9, batch=1, band=CAUSAL, dtype=torch.float64)
    want = by_hand(a, lambda i, j: j <= i and (i - j < 2 or j < 4))
    torch.testing.assert_close(Window(2).definition(operands(a)), want, rtol=1e-12, atol=1e-12)


CHOICES: dict[str, tuple[Form, dict[str, Any], tuple[int, ...]]] = {
    "causal": (Window(4), {"facts": Facts(band=CAUSAL)}, (0, 1, 2, 4, 8)),
    "causal, long": (Window(4), {"facts": Facts(band=CAUSAL), "queries": 99, "keys": 99}, protected.LADDER),
    "both sides": (Window(4), {}, (0, 1, 2, 4, 8)),
    "tokens before a grid": (Window(4), {"geometry": Geometry(3)}, (0, 1, 2, 3, 4, 8)),
    "as given": (Window(4, 2), {}, ()),
    "on a grid": (Window(3, grid="auto"), {"geometry": GRID}, ()),
    "nothing is hidden": (Window(16), {"facts": Facts(band=CAUSAL)}, ()),
    "no window is proved": (Window("auto"), {}, ()),
    "averages": (Pooled(8, 2, 4), {}, (0, 1, 2, 4, 8)),
    "averages on a grid": (Pooled(2, 2, grid="4x4"), {}, ()),
    "nothing is averaged": (Pooled(16, 4), {}, ()),
}


@pytest.mark.parametrize(("form", "what", "numbers"), CHOICES.values(), ids=list(CHOICES))
def test_data_is_to_choose_from_a_ladder(form: Form, what: dict[str, Any], numbers: tuple[int, ...]) -> None:
    choices = form.choices(site(**what))
    assert tuple(choice.parameters["sinks"] for choice in choices) == numbers
    assert all(choice.parameters["window"] == form.parameters["window"] for choice in choices)


ERRORS: dict[str, tuple[tuple[float, ...], int, int]] = {
    "one is enough": ((0.5, 0.11, 0.1, 0.1), 0, 1),
    "not quite enough": ((0.5, 0.15, 0.1, 0.1), 0, 2),
    "all of them": ((0.5, 0.4, 0.3, 0.1), 0, 4),
    "at least so many": ((0.5, 0.11, 0.1, 0.1), 2, 2),
    "more than all": ((0.5, 0.4, 0.3, 0.1), 9, 4),
    "worse with them": ((0.1, 0.4, 0.4, 0.4), 0, 0),
    "no difference": ((0.3, 0.3, 0.29, 0.3), 2, 2),
    "no error at all": ((0.0, 0.0, 0.0, 0.0), 1, 1),
    "none is left": ((0.2, 0.0, 0.0, 0.0), 0, 1),
}


@pytest.mark.parametrize(("errors", "least", "wanted"), ERRORS.values(), ids=list(ERRORS))
def test_the_fewest_that_are_about_as_good(errors: tuple[float, ...], least: int, wanted: int) -> None:
    assert protected.fewest(dict(zip((0, 1, 2, 4), errors, strict=True)), least) == wanted


def test_what_could_not_be_run_is_not_chosen() -> None:
    here = site(facts=Facts(band=CAUSAL))
    forms = Window(4).choices(here)
    errors = dict(zip(forms, (0.5, 0.4, 0.3, 0.3, 0.01), strict=True))
    assert Window(4).choose(here, list(errors.items())) == forms[4]
    assert Window(4).choose(here, list(errors.items())[1:]) is None
