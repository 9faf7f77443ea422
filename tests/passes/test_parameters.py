"""Parameters of forms and passes: what is not allowed is said in one line, the same in text and in code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rewriter.passes
from rewriter.errors import InputError
from rewriter.passes import CATALOG, form_type, get, parse_form
from rewriter.selectors import parse_apply

NEEDED: dict[str, dict[str, Any]] = {
    "agent": {"agents": 4},
    "merge": {"ratio": 0.25},
    "nystrom": {"landmarks": 4},
    "pooled": {"window": 8},
    "window": {"window": 8},
}
"""Parameters without which a form cannot be made."""

PARAMETERS = [(form, name) for form in CATALOG for name in form_type(form).parameter_types()]


@pytest.mark.parametrize(("form", "name"), PARAMETERS, ids=[f"{form}-{name}" for form, name in PARAMETERS])
@pytest.mark.parametrize(
    "value", [1j, [1], (4, 4), object(), b"4", np.zeros(3)], ids=lambda v: type(v).__name__
)
def test_other_types_are_refused_in_code(form: str, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{form}: {name} is .*; expected "):
        get(form)(**{**NEEDED.get(form, {}), name: value})


@pytest.mark.parametrize(("form", "name"), PARAMETERS, ids=[f"{form}-{name}" for form, name in PARAMETERS])
def test_truth_is_no_number_and_no_text(form: str, name: str) -> None:
    if form_type(form).parameter_types()[name] is not bool:
        with pytest.raises(ValueError, match=rf"^{form}: {name} is True; expected "):
            get(form)(**{**NEEDED.get(form, {}), name: True})


CODE: dict[str, tuple[str, dict[str, Any], str]] = {
    "a fraction of a key": (
        "window",
        {"window": 7.5},
        "window: window is 7.5; expected a whole number or text",
    ),
    "a whole number that is none": (
        "agent",
        {"agents": 4.0},
        "agent: agents is 4.0; expected a whole number",
    ),
    "text for a number": ("agent", {"agents": "4"}, "agent: agents is '4'; expected a whole number"),
    "none where one is needed": ("nystrom", {"landmarks": None}, "nystrom: landmarks is None; expected"),
    "a number for truth": ("merge", {"r": 2, "through": 1}, "merge: through is 1; expected true or false"),
    "beyond every number": ("gated", {"bias": 10**400}, "expected a number"),
    "a margin of nothing": ("merge", {"r": 2, "margin": 2.0}, "margin is 2.0; expected keep with it"),
    "no path": ("gated", {"weights": ""}, "weights is ''; expected the path of a .npz file"),
}


@pytest.mark.parametrize(("form", "given", "said"), CODE.values(), ids=list(CODE))
def test_values_that_are_refused_in_code(form: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        get(form)(**given)
    assert "\n" not in str(error.value)


SPELLINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "whole numbers are numbers": ("clipped", {"zeta": 1, "gamma": 0}),
    "those of numpy": ("agent", {"agents": np.int64(4), "sharpness": np.float32(0.5)}),
    "sides of numpy": ("window", {"window": np.int32(9), "stride": np.int64(2), "sinks": np.uint8(1)}),
    "shares": ("merge", {"ratio": 0}),
    "paths": ("gated", {"weights": Path("gates.npz")}),
}


@pytest.mark.parametrize(("form", "given"), SPELLINGS.values(), ids=list(SPELLINGS))
def test_a_form_made_in_code_is_the_one_that_its_plan_replays(form: str, given: dict[str, Any]) -> None:
    made = get(form)(**given).form
    again = parse_form(str(made))
    assert again == made and str(again) == str(made) and repr(again) == repr(made)


TEXTS = {
    "agent:agents=1_0": "agents is '1_0'; expected a whole number",
    "agent:agents=٣": "expected a whole number",
    "agent:agents=4,grid=٤x٤": "expected auto, or rows and columns as in 32x32",
    "window:window=٣": "expected a number, or one per axis as in 7x7",
    "clipped:gamma=-1_0": "gamma is '-1_0'; expected a number",
    "merge:r=2,through=1": "through is '1'; expected true or false",
    "window:window=7@best=0.5,best=0.2": "best is given twice",
    "layer-norm:x=1": "layer-norm is no form but a rule, without parameters and selector",
    "layer-norm@0": "layer-norm is no form but a rule",
    "exact@0": "exact is no form but a rule",
}


@pytest.mark.parametrize(("text", "said"), TEXTS.items(), ids=list(TEXTS))
def test_texts_that_are_refused(text: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        parse_apply(text)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_misspelt_parameter_of_a_pass_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match=r"WindowAttention has no parameter 'sink'; it has window: .*sinks"):
        rewriter.passes.WindowAttention(window=7, sink=4)  # type: ignore[call-arg]


def test_a_selector_may_be_a_number() -> None:
    assert str(rewriter.passes.SoftmaxAttention(select=3).selector) == "3"  # type: ignore[arg-type]
    with pytest.raises(InputError, match="cannot read 'None'"):
        rewriter.passes.SoftmaxAttention(select=None)  # type: ignore[arg-type]
