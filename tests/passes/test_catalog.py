from __future__ import annotations

from pathlib import Path

import pytest

import rewriter.passes
from rewriter.errors import InputError
from rewriter.forms import Form
from rewriter.passes import CATALOG, form_type, get, parse_form

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", CATALOG)
def test_every_name_is_a_pass_of_its_form(name: str) -> None:
    kind = get(name)
    assert getattr(rewriter.passes, kind.__name__) is kind
    assert kind.__name__ in rewriter.passes.__all__
    assert issubclass(form_type(name), Form) and form_type(name).name == name and form_type(name).summary


@pytest.mark.parametrize("name", CATALOG)
def test_every_pass_says_when_it_applies(name: str) -> None:
    text = get(name).__doc__ or ""
    for heading in ("Before:", "After:", "Applies when", "Refuses when", "Numbers", "Examples"):
        assert heading in text


@pytest.mark.parametrize("name", CATALOG)
def test_every_form_has_a_page_that_names_its_parameters(name: str) -> None:
    page = (ROOT / "docs" / "forms" / f"{name}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {name}\n")
    for parameter in form_type(name).parameter_types():
        assert f"`{parameter}`" in page
        assert parameter in (form_type(name).__doc__ or "")
    for heading in ("**Applies when**", "**Refuses when**", "**Numbers"):
        assert heading in page


def test_unknown_names_are_answered_with_what_there_is() -> None:
    with pytest.raises(InputError, match=", ".join(sorted(CATALOG))):
        get("quadratic")
    with pytest.raises(AttributeError, match="QuadraticAttention"):
        rewriter.passes.QuadraticAttention  # noqa: B018


def test_a_form_reads_back_what_it_prints() -> None:
    for text in ("softmax", "window:window=8,sinks=2", "window:window=3,sinks=0,grid=auto"):
        assert str(parse_form(text)) == text
