"""The page, structurally: it parses, fetches nothing, runs nothing, escapes everything, and stays small."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pytest

from rewriter.report.png import png
from rewriter.report.quality_sections import used
from rewriter.report.text import similarity
from rewriter.report.validation_page import validation_page
from rewriter.verify.bench import SizeReport
from rewriter.verify.budget import Outcome, parse_budget
from rewriter.verify.intervals import Interval
from rewriter.verify.per_site import AttentionMap, PerSite, StretchRecord
from rewriter.verify.validation import ValidationReport
from tests.report.records import HOSTILE, drawing, failing, full_report

VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """Elements with their attributes, text, and whether every one is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} stands twice"
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


REPORTS = {
    "passing": full_report(),
    "failing": failing(full_report()),
    "hostile": full_report(name=HOSTILE),
    "one site": full_report(sites=1, heads=1, tokens=1),
    "no site": full_report(sites=0),
    "bare": ValidationReport("a", "b", True, "noise floor", True, "equal", {}, ()),
}


@pytest.fixture(params=REPORTS, scope="module")
def page(request: pytest.FixtureRequest) -> str:
    name = HOSTILE if request.param == "hostile" else "/layer.0"
    return validation_page(REPORTS[request.param], [drawing(name)])


def test_parses_and_every_element_is_closed(page: str) -> None:
    found = Page(page)
    ids = [a["id"] for _, a in found.elements if "id" in a]
    assert len(set(ids)) == len(ids)
    assert {f"#{i}" for i in ids} >= {a["href"] for a in found.named("a")}


def test_fetches_nothing_and_runs_nothing(page: str) -> None:
    found = Page(page)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {
        t for t, _ in found.elements
    }
    for tag, attributes in found.elements:
        assert not any(key.startswith("on") for key in attributes), (tag, attributes)
        for key in ("src", "href", "xlink:href", "action", "data", "srcset"):
            value = attributes.get(key)
            assert value is None or value.startswith(("data:image/png;base64,", "#")), (tag, value)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.S)
    assert "url(" not in style and "@import" not in style and "http" not in style
    (policy,) = (
        a["content"] for a in found.named("meta") if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_ends_with_one_newline(page: str) -> None:
    assert page.endswith("</html>\n")


def test_hostile_names_are_text(page: str) -> None:
    assert "<script" not in page and "<img src=x" not in page and "49" not in re.findall(r"\{\{.*", page)
    assert page.count("</style>") == 1


def test_hostile_names_are_shown_as_they_are() -> None:
    assert HOSTILE in "".join(Page(validation_page(REPORTS["hostile"])).text)


def test_pictures_have_words_and_tables_have_heads(page: str) -> None:
    found = Page(page)
    assert all(a.get("alt") for a in found.named("img"))
    assert all(a.get("aria-label") or a.get("aria-hidden") for a in found.named("svg"))
    assert all(a.get("scope") in ("col", "row") for a in found.named("th"))
    assert len(found.named("caption")) == len(found.named("table"))
    assert all("data-label" in a for a in found.named("td"))


def test_is_small_enough_to_send() -> None:
    largest = full_report(sites=32, heads=32, tokens=400)
    assert len(validation_page(largest, [drawing()]).encode()) < 1_000_000


def test_is_the_same_every_time() -> None:
    assert validation_page(full_report(), [drawing()]) == validation_page(full_report(), [drawing()])


def test_says_what_failed_and_who_is_to_blame() -> None:
    text = "".join(Page(validation_page(REPORTS["failing"])).text)
    assert "Failed" in text and "misses cos>=0.99" in text and "✗ to blame" in text
    assert "Failed" not in "".join(Page(validation_page(REPORTS["passing"])).text)


def test_a_fault_between_sites_is_named() -> None:
    report = full_report(sites=2)
    assert isinstance(report.per_site, PerSite)
    between = StretchRecord("attention.0", "attention.1", tolerance=1e-6, ok=False, value=HOSTILE)
    fine = StretchRecord("attention.1", None, tolerance=1e-6, ok=True)
    recorded = replace(report.per_site, stretches=(between, fine))
    text = "".join(Page(validation_page(replace(report, per_site=recorded))).text)
    assert "Between attention.0 and attention.1: the largest error is –" in text
    assert f"the first value that is off is {HOSTILE}." in text and "the outputs" not in text


def test_what_is_not_judged_is_not_called_a_success() -> None:
    text = validation_page(replace(full_report(), judged="nothing", budget=()))
    assert "Measured, not judged" in text and 'class="verdict open"' in text


def test_a_ratio_that_may_be_one_is_no_speed_up() -> None:
    report = full_report()
    (size,) = report.timings
    assert isinstance(size, SizeReport)
    first, other = size.rows
    for low, shown in ((0.9, "≈ 1×"), (1.1, "1.20×")):
        row = replace(other, speed=Interval(1.2, low, 1.3, 0.95))
        text = validation_page(replace(report, timings=(replace(size, rows=(first, row)),)))
        assert f'<dt>Speed</dt><dd class="number">{shown}</dd>' in text


def test_values_that_are_not_finite_do_not_break_pictures() -> None:
    report = full_report(sites=3)
    assert isinstance(report.per_site, PerSite)
    first, *others = report.per_site.sites
    assert first.local is not None
    bad = replace(
        first,
        local=replace(first.local, heads=(np.nan, np.inf, 0.0)),
        maps=(AttentionMap(0, np.full((3, 5), np.nan), np.zeros((3, 5))),),
    )
    text = validation_page(replace(report, per_site=replace(report.per_site, sites=(bad, *others))))
    assert not re.search(r' (?:d|x|y|width|height|style)="[^"]*(?:nan|inf)', text)


@pytest.mark.parametrize(
    ("budget", "measured", "expected"),
    [
        ("cos>=0.99", 0.995, 0.5),
        ("cos>=0.99", 0.98, 2.0),
        ("kl<=0.02", 0.01, 0.5),
        ("sqnr>=30dB", 30.0, 1.0),
        ("sqnr>=30dB", 50.0, 0.1),
        ("top1>=0.98", 1.0, 0.0),
        ("max_abs<=0", 0.0, None),
        ("cos>=1", 1.0, None),
        ("kl<=0.02", float("nan"), None),
        ("task.accuracy>=0.9", 0.95, None),
    ],
)
def test_share_of_a_budget_that_is_used(budget: str, measured: float, expected: float | None) -> None:
    found = used(Outcome(parse_budget(budget), "y", measured, True))
    assert found == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("number", [0.5, 0.9, 0.99, 0.999, 0.9999949, 1 - 1e-6, 1 - 1e-9, 1 - 1e-15])
def test_what_is_close_to_one_is_not_rounded_up_to_one(number: float) -> None:
    assert similarity(number) != "1" and not re.fullmatch(r"1\.0+", similarity(number))


def test_picture_can_be_read_by_others() -> None:
    from io import BytesIO

    image = pytest.importorskip("PIL.Image")
    wanted = np.linspace(-0.5, 1.5, 35).reshape(5, 7)
    wanted[0, 0] = np.nan
    found = image.open(BytesIO(png(wanted)))
    assert found.size == (7, 5)
    alpha = np.asarray(found.convert("RGBA"))[..., 3]
    assert np.array_equal(alpha, np.round(np.clip(np.nan_to_num(wanted), 0, 1) * 255))


def _colours(style: str) -> list[dict[str, str]]:
    found = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in re.findall(r"\{[^{}]*\}", style)
    ]
    light, dark = (c for c in found if len(c) > 8)
    return [light, dark]


def _contrast(a: str, b: str) -> float:
    """Contrast of two colours, WCAG 2.2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    one, two = sorted((luminance(a), luminance(b)), reverse=True)
    return (one + 0.05) / (two + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read_on_every_ground(theme: int) -> None:
    style = files("rewriter.report").joinpath("templates", "style.css").read_text(encoding="utf-8")
    colours = _colours(style)[theme]
    for ground in ("paper", "card", "faint"):
        for ink in ("ink", "soft", "after", "before", "good", "bad", "warn"):
            assert _contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    for kind in ("good", "bad", "warn"):
        assert _contrast(colours[kind], colours[f"{kind}-paper"]) >= 4.5, kind
        assert _contrast(colours["ink"], colours[f"{kind}-paper"]) >= 4.5, kind


def test_the_first_figure_is_the_task() -> None:
    page = validation_page(full_report())
    (task, *_) = full_report().tasks
    assert f"<dt>{task.name}</dt>" in page
    assert page.index(f"<dt>{task.name}</dt>") < page.index("<dt>Cosine</dt>")


def test_the_verdict_does_not_repeat_its_headline() -> None:
    made = replace(full_report(), verdict="within budget on data inputs: cos of y is 1, which meets cos>=0.9")
    text = " ".join(Page(validation_page(made)).text)
    assert "On data inputs: cos of y is 1" in text and "ithin budget on data" not in text
