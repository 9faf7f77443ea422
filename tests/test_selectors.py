from __future__ import annotations

from typing import Any

import pytest

from rewriter.algebra.sizes import Size
from rewriter.errors import InputError
from rewriter.selectors import Selector, parse_apply
from rewriter.sites.site import Band, Facts
from tests.kernels.operands import CAUSAL, site

CHANGES: list[dict[str, Any]] = [
    {"facts": Facts(band=CAUSAL)},
    {"facts": Facts(dense=True)},
    {"facts": Facts(), "queries": 7},
    {"facts": Facts(band=Band(Size.of(0), 4, 0))},
]
SITES = tuple(site(id=f"attention.{at}", **changes) for at, changes in enumerate(CHANGES))

CHOSEN: dict[str, list[int]] = {
    "all": [0, 1, 2, 3],
    "attention.2": [2],
    "2": [2],
    "1-2": [1, 2],
    "0,2,3": [0, 2, 3],
    "attention.3, 0-1": [0, 1, 3],
    "causal": [0, 3],
    "dense": [1],
    "cross": [2],
    "self": [0, 1, 3],
    "causal,window": [3],
    "0-2,self": [0, 1],
    "all,causal": [0, 3],
    "best=0.5": [0, 1, 2, 3],
    "attention": [0, 1, 2, 3],
}


@pytest.mark.parametrize(("text", "numbers"), CHOSEN.items(), ids=list(CHOSEN))
def test_chooses(text: str, numbers: list[int]) -> None:
    found = Selector.parse(text).candidates(SITES)
    assert [s.id for s in found] == [f"attention.{n}" for n in numbers]


def test_kinds_select() -> None:
    sites = (*SITES, site(id="pooling.4", kind="pooling"))
    assert [s.id for s in Selector.parse("pooling").candidates(sites)] == ["pooling.4"]
    assert len(Selector.parse("attention,self").candidates(sites)) == 3


WRONG = {
    "nonsense": "cannot read 'nonsense'",
    "": "cannot read ''",
    "5-3": "cannot read '5-3'",
    "best=0": "expected a fraction",
    "best=1.5": "expected a fraction",
    "-1": "cannot read '-1'",
    "conv.x": "cannot read 'conv.x'",
    "gate.2": "no site gate.2;",
    "4": "no site 4; the model has attention.0 to attention.3",
    "2-99999999999999999999": "no site",
    "1,causal": "selects none of the 4 sites",
}


@pytest.mark.parametrize(("text", "words"), WRONG.items(), ids=list(WRONG))
def test_says_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Selector.parse(text).candidates(SITES)


def test_without_sites_says_so() -> None:
    with pytest.raises(InputError, match="0 sites"):
        Selector().candidates(())


@pytest.mark.parametrize(
    ("best", "count", "kept"), [(None, 5, 5), (0.5, 4, 2), (0.5, 3, 2), (0.01, 9, 1), (1.0, 3, 3)]
)
def test_best_keeps_a_fraction(best: float | None, count: int, kept: int) -> None:
    assert Selector(best=best).keep(count) == kept


APPLIED = {
    "softmax": ("softmax", Selector()),
    "window:window=8": ("window:window=8,sinks=auto", Selector()),
    " window:window=8, sinks=2@causal": ("window:window=8,sinks=2", Selector("causal", facts=("causal",))),
    "softmax@best=.25": ("softmax", Selector("best=.25", best=0.25)),
    "window:window=3,grid=2x5@1-2": (
        "window:window=3,sinks=auto,grid=2x5",
        Selector("1-2", numbers=(range(1, 3),)),
    ),
}


@pytest.mark.parametrize(("text", "wanted"), APPLIED.items(), ids=list(APPLIED))
def test_reads_what_to_apply(text: str, wanted: tuple[str, Selector]) -> None:
    form, selector = parse_apply(text)
    assert (str(form), selector) == wanted


FORMS: dict[str, Any] = {
    "wndow:window=8": "there is no form 'wndow'; there are agent, .*, softmax, window",
    "window": "needs window",
    "window:window=x": "window is 'x'; expected a number, or one per axis as in 7x7",
    "window:window=0": "expected at least 1",
    "window:window=3,window=4": "given twice",
    "window:window=3,sinks=-1": "sinks is -1; expected 0 or more, or auto",
    "window:window=3,sinks=1x2": "sinks is 1x2; expected 0 or more, or auto",
    "window:width=3": "has no parameter 'width=3'; it has window: str, sinks: str = auto, grid: str",
    "window:window": "has no parameter 'window'",
    "softmax:a=1": "it has none",
    "softmax@": "nothing after @",
}


@pytest.mark.parametrize(("text", "words"), FORMS.items(), ids=list(FORMS))
def test_a_form_that_cannot_be_read_is_explained(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_apply(text)
