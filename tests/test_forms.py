from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from rewriter.forms import Form, refusal
from rewriter.kernels.softmax.form import Softmax
from rewriter.kernels.window.form import Window
from rewriter.sites.site import KINDS, AttentionSite
from tests.kernels.operands import site


@dataclass(frozen=True)
class Plain(Softmax):
    """Legal for what every form is legal for."""

    name = "plain"
    kinds = Form.kinds
    traits = Form.traits


@dataclass(frozen=True)
class Short(Softmax):
    """Has a rule of its own."""

    def why_not(self, site: AttentionSite) -> str | None:
        return f"{site.id} is too long" if site.keys.at_least(10) else None


REFUSED: dict[str, tuple[Form, dict[str, Any], str]] = {
    "kind": (
        Softmax(),
        {"id": "outlook-attention.3", "kind": "outlook-attention"},
        "outlook-attention.3 is outlook-attention (weights over the keys that are predicted from the query"
        " alone); softmax is for attention, channel-attention, latent-attention and pooling",
    ),
    "kind, of one": (
        Window(4),
        {"kind": "pooling"},
        "attention.0 is pooling (attention with a single query per head: a set is reduced to one vector);"
        " window is for attention",
    ),
    "normalizer": (
        Window(4),
        {"normalizer": "sigmoid"},
        "attention.0 is normalised by sigmoid, which window does not compute",
    ),
    "trait": (
        Plain(),
        {"traits": ("softcap",)},
        "attention.0 is soft-capped (softcap), which plain does not compute",
    ),
    "traits": (
        Plain(),
        {"traits": ("softcap", "sink")},
        "attention.0 is soft-capped (softcap) and has sinks in its softmax (sink), which plain does"
        " not compute",
    ),
    "only what is foreign": (
        Softmax(),
        {"traits": ("softcap", "head-mixing")},
        "attention.0 mixes its heads (head-mixing), which softmax does not compute",
    ),
    "weights": (
        Window(4),
        {"traits": ("weight-function",)},
        "attention.0 changes its weights before they meet the values (weight-function), which window does not"
        " compute",
    ),
    "scores": (
        Softmax(),
        {"traits": ("score-function",)},
        "attention.0 applies a function to the products of queries and keys (score-function), which softmax"
        " does not compute",
    ),
    "kind before the form's own rule": (
        Short(),
        {"kind": "slot-attention", "keys": 20},
        "attention.0 is slot-attention (weights that are normalised over the queries, which compete for the"
        " keys); softmax is for attention, channel-attention, latent-attention and pooling",
    ),
    "the form's own rule": (Short(), {"keys": 20}, "attention.0 is too long"),
}


@pytest.mark.parametrize(("form", "changes", "sentence"), REFUSED.values(), ids=list(REFUSED))
def test_a_refusal_names_what_the_form_does_not_compute(
    form: Form, changes: dict[str, Any], sentence: str
) -> None:
    assert refusal(form, site(**changes)) == sentence


@pytest.mark.parametrize("traits", [(), ("softcap",), ("sink",), ("softcap", "sink")])
def test_exact_forms_compute_soft_caps_and_sinks(traits: tuple[Any, ...]) -> None:
    assert refusal(Softmax(), site(traits=traits)) is None
    assert refusal(Window(4), site(traits=traits)) is None


@pytest.mark.parametrize("form", [Softmax(), Window(4)], ids=["softmax", "window"])
def test_kinds_are_known(form: Form) -> None:
    assert form.kinds <= KINDS.keys()
    refused = {kind for kind in KINDS if refusal(form, site(kind=kind)) is not None}
    assert refused == KINDS.keys() - form.kinds
