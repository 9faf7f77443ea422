"""Windows with strides, dilation, shifted blocks and borders, along one, two and three axes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from rewriter.algebra.sizes import Size
from rewriter.forms import Canonical, Fidelity, Form
from rewriter.kernels.softmax.form import Softmax
from rewriter.kernels.window import form as form_module
from rewriter.kernels.window.axes import AxisWindow
from rewriter.kernels.window.form import Window
from rewriter.lower.torch_emitter import TorchEmitter
from rewriter.sites.patterns import Blocks, GridAxis, Neighbourhood, Segments, Stride
from rewriter.sites.site import Band, Facts, Geometry
from tests.kernels.operands import CAUSAL, by_hand, canonical, emitter_of, operands, site


def nearest(size: int, window: int, dilation: int = 1) -> Callable[[int, int], bool]:
    """Neighbourhood attention: the ``window`` nearest of a query's class, moved inside at the ends."""

    def sees(i: int, j: int) -> bool:
        mine = [x for x in range(size) if (x - i) % dilation == 0]
        at = mine.index(i)
        start = max(0, min(at - window // 2, len(mine) - window))
        return j in mine[start : start + window]

    return sees


def blocks(size: int, shift: int = 0) -> Callable[[int, int], bool]:
    return lambda i, j: (i + shift) // size == (j + shift) // size


def haloed(block: int, halo: int) -> Callable[[int, int], bool]:
    return lambda i, j: i // block * block - halo <= j < i // block * block + block + halo


def dilated(half: int, step: int) -> Callable[[int, int], bool]:
    return lambda i, j: (i - j) % step == 0 and abs(i - j) <= half * step


Case = tuple[Window, Callable[[int, int], bool]]

LINES: dict[str, Case] = {
    "neighbourhood": (Window(5, borders="shift"), nearest(19, 5)),
    "dilated neighbourhood": (Window(3, dilation=4, borders="shift"), nearest(19, 3, 4)),
    "a window longer than a class": (Window(7, dilation=4, borders="shift"), nearest(19, 7, 4)),
    "blocks": (Window(4, stride=4), blocks(4)),
    "shifted blocks": (Window(4, stride=4, offset=2), blocks(4, 2)),
    "blocks with a halo": (Window(9, stride=5), haloed(5, 2)),
    "dilated": (Window(5, dilation=3), dilated(2, 3)),
}

CAUSAL_LINES: dict[str, Case] = {
    "blocks": (Window(4, stride=4), lambda i, j: j <= i and i // 4 == j // 4),
    "two blocks": (Window(8, stride=4), lambda i, j: j <= i and j // 4 >= i // 4 - 1),
    "dilated": (Window(3, dilation=2), lambda i, j: j <= i and (i - j) in (0, 2, 4)),
    "borders do not move": (
        Window(3, dilation=2, borders="shift"),
        lambda i, j: j <= i and (i - j) in (0, 2, 4),
    ),
}

GRIDS: dict[str, tuple[Window, tuple[int, ...], tuple[Callable[[int, int], bool], ...]]] = {
    "neighbourhood": (Window("3x5", 0, "4x6", borders="shift"), (4, 6), (nearest(4, 3), nearest(6, 5))),
    "dilated neighbourhood": (
        Window(3, 1, "5x6", dilation="1x2", borders="shift"),
        (5, 6),
        (nearest(5, 3), nearest(6, 3, 2)),
    ),
    "shifted blocks": (
        Window("2x3", 0, "4x6", stride="2x3", offset="1x2"),
        (4, 6),
        (blocks(2, 1), blocks(3, 2)),
    ),
    "halo": (Window(4, 2, "5x4", stride=2), (5, 4), (haloed(2, 1), haloed(2, 1))),
    "three axes": (
        Window("1x3x2", 1, "2x4x4", stride="1x1x2"),
        (2, 4, 4),
        (blocks(1), lambda i, j: abs(i - j) <= 1, blocks(2)),
    ),
}


def unravel(at: int, sizes: tuple[int, ...]) -> list[int]:
    found = []
    for size in reversed(sizes):
        at, place = divmod(at, size)
        found.append(place)
    return found[::-1]


def on_grid(
    sizes: tuple[int, ...], sinks: int, rules: tuple[Callable[[int, int], bool], ...]
) -> Callable[[int, int], bool]:
    def sees(i: int, j: int) -> bool:
        if i < sinks or j < sinks:
            return True
        places = zip(rules, unravel(i - sinks, sizes), unravel(j - sinks, sizes), strict=True)
        return all(rule(x, y) for rule, x, y in places)

    return sees


def emitted(form: Form, a: Canonical) -> torch.Tensor:
    result: torch.Tensor = form.emit(emitter_of(a), a)
    return result


@pytest.mark.parametrize("sinks", [0, 2])
@pytest.mark.parametrize(("form", "rule"), LINES.values(), ids=list(LINES))
def test_one_axis(form: Window, rule: Callable[[int, int], bool], sinks: int) -> None:
    a, form = canonical(19, batch=2, heads=2, bias="full", dtype=torch.float64), replace(form, sinks=sinks)
    want = by_hand(a, lambda i, j: i < sinks or j < sinks or rule(i, j))
    torch.testing.assert_close(form.definition(operands(a)), want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(emitted(form, a), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sinks", [0, 2])
@pytest.mark.parametrize(("form", "rule"), CAUSAL_LINES.values(), ids=list(CAUSAL_LINES))
def test_one_causal_axis(form: Window, rule: Callable[[int, int], bool], sinks: int) -> None:
    a = canonical(19, batch=1, heads=2, band=CAUSAL, dtype=torch.float64)
    form = replace(form, sinks=sinks)
    want = by_hand(a, lambda i, j: rule(i, j) or (j < sinks and j <= i))
    torch.testing.assert_close(form.definition(operands(a)), want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(emitted(form, a), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("form", "sizes", "rules"), GRIDS.values(), ids=list(GRIDS))
def test_several_axes(
    form: Window, sizes: tuple[int, ...], rules: tuple[Callable[[int, int], bool], ...]
) -> None:
    assert isinstance(form.sinks, int)
    tokens = math.prod(sizes) + form.sinks
    a = canonical(tokens, batch=1, heads=2, dtype=torch.float64)
    want = by_hand(a, on_grid(sizes, form.sinks, rules))
    torch.testing.assert_close(form.definition(operands(a)), want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(emitted(form, a), want, rtol=1e-10, atol=1e-10)


SETTINGS = list(
    itertools.product(
        (1, 2, 7, 30), (3, 8), (1, 2, 3), (1, 3), ("clip", "shift"), (0, 3), (CAUSAL, None), (None, "keys")
    )
)


def test_tiles_of_one_axis_meet_the_definition() -> None:
    for length, window, stride, dilation, borders, sinks, band, bias in SETTINGS:
        form = Window(window, sinks, stride=stride, dilation=dilation, offset=stride // 2, borders=borders)
        here = site(queries=length, keys=length, facts=Facts(band=band, dense=band is None))
        if bias == "keys" and form.fidelity(here) is Fidelity.EXACT:
            continue  # an empty row gives what the site gives
        a = canonical(length, heads=2, groups=1, band=band, bias=bias)
        case = (str(form), length, band, bias)
        assert form.why_not(here) is None, case
        assert torch.allclose(emitted(form, a), form.definition(operands(a)), rtol=1e-5, atol=1e-5), case


@pytest.mark.parametrize("band", [CAUSAL, None, Band(Size.of(0), 9, 4)], ids=str)
def test_tiles_of_any_length_meet_the_definition(monkeypatch: pytest.MonkeyPatch, band: Band | None) -> None:
    monkeypatch.setattr(form_module, "tile_length", lambda *_: 8)
    for length, window, stride, dilation, sinks, bias in itertools.product(
        (1, 2, 7, 30), (3, 8), (1, 3), (1, 3), (0, 4), (None, "keys")
    ):
        form = Window(window, sinks, stride=stride, dilation=dilation, offset=stride // 2)
        a = canonical(length, heads=2, groups=1, band=band, bias=bias, dynamic=True)
        here = site(queries="n", keys="n", facts=Facts(band=band, dense=band is None))
        case = (str(form), length, bias)
        assert form.why_not(here) is None, case
        assert torch.allclose(emitted(form, a), form.definition(operands(a)), rtol=1e-5, atol=1e-5), case


def test_gradients_of_tiles_of_any_length_are_finite_and_right() -> None:
    for form, band in ((Window(3, stride=3, dilation=2), CAUSAL), (Window(4, 1, stride=4), None)):
        a = canonical(21, band=band, dynamic=True)
        parts = [x.requires_grad_() for x in (a.q, a.k, a.v)]
        found = torch.autograd.grad(emitted(form, a).sum(), parts)
        want = torch.autograd.grad(form.definition(operands(a)).sum(), parts)
        for got, right in zip(found, want, strict=True):
            torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-5)


def test_a_cache_stands_before_the_queries() -> None:
    a = canonical(5, 17, band=Band(Size.of(12), None, 0))
    for form in (Window(3, dilation=2), Window(8, 1, stride=4), Window(8, 1, stride=4, offset=3)):
        want = form.definition(operands(a))
        torch.testing.assert_close(emitted(form, a), want, rtol=1e-5, atol=1e-5)


class Counting(TorchEmitter):
    scores = 0
    masks = 0

    def attention(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        self.scores += q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
        self.masks += options.get("bias") is not None
        return super().attention(q, k, v, **options)


@pytest.mark.parametrize(
    ("form", "tokens", "share", "masked"),
    [
        (Window("8x8", 0, "32x32", stride=8), 1024, 64 / 1024, False),
        (Window(64, stride=64), 1024, 64 / 1024, False),
        (Window("8x8", 0, "32x32", borders="shift"), 1024, 0.33, True),
        (Window(16, dilation=8), 1024, 0.08, True),
        (Window("4x8x8", 0, "4x16x16", stride="4x8x8"), 1024, 256 / 1024, False),
    ],
    ids=str,
)
def test_less_is_computed(form: Window, tokens: int, share: float, masked: bool) -> None:
    a = canonical(tokens, batch=1, heads=1, groups=1)
    e = emitter_of(a, Counting)
    assert isinstance(e, Counting)
    found = form.emit(e, a)
    assert e.scores <= share * tokens**2 and bool(e.masks) == masked
    torch.testing.assert_close(found, form.definition(operands(a)), rtol=1e-4, atol=1e-5)
    cost = form.cost(site(heads=1, queries=tokens, keys=tokens))
    dense = Softmax().cost(site(heads=1, queries=tokens, keys=tokens))
    assert int(cost.flops) / int(dense.flops) == pytest.approx(e.scores / tokens**2, rel=0.05)


def facts(**found: Any) -> Facts:
    return Facts(**found)


GRID = (GridAxis(Size.of(6), 2, 2, True), GridAxis(Size.of(8), 1, 1))
MOVED = (GridAxis(Size.of(6), 2, 2, True), GridAxis(Size.of(8), 4, 4, True, 2))

PROVED: dict[str, tuple[Facts, int, str | None]] = {
    "a band": (Facts(band=Band(Size.of(0), 4, 0)), 16, "window:window=5,sinks=0"),
    "both sides": (Facts(band=Band(Size.of(0), 2, 3)), 16, "window:window=7,sinks=0"),
    "blocks": (Facts(blocks=Blocks(Size.of(4))), 16, "window:window=4,sinks=0,stride=4"),
    "shifted blocks": (
        Facts(blocks=Blocks(Size.of(4), Size.of(2), Size.of(2))),
        16,
        "window:window=4,sinks=0,stride=4,offset=2",
    ),
    "a neighbourhood": (
        Facts(neighbourhood=Neighbourhood(MOVED)),
        48,
        "window:window=5x5,sinks=0,grid=6x8,dilation=1x2,borders=shift",
    ),
    "one axis is moved": (
        Facts(neighbourhood=Neighbourhood(GRID)),
        48,
        "window:window=9x3,sinks=0,grid=6x8",
    ),
    "one axis of a neighbourhood": (
        Facts(neighbourhood=Neighbourhood((GridAxis(Size.of(16), 1, 2, True),))),
        16,
        "window:window=4,sinks=0,borders=shift",
    ),
    "segments of one size": (
        Facts(segments=Segments(lengths=(2, 5, 5, 4))),
        16,
        "window:window=5,sinks=0,stride=5,offset=3",
    ),
    "other segments": (Facts(segments=Segments(lengths=(2, 6, 5, 3))), 16, "window:window=11,sinks=0"),
    "segments of unknown lengths": (Facts(segments=Segments()), 16, None),
    "causal": (Facts(band=CAUSAL), 16, None),
    "nothing": (Facts(dense=True), 16, None),
    "blocks of unknown size": (Facts(blocks=Blocks(Size.symbol("n"))), 16, None),
}


@pytest.mark.parametrize(("shown", "tokens", "text"), PROVED.values(), ids=list(PROVED))
def test_the_mask_says_which_window(shown: Facts, tokens: int, text: str | None) -> None:
    here = site(queries=tokens, keys=tokens, facts=shown)
    form = Window("auto").at(here)
    if text is None:
        assert form == Window("auto") and "is not proved to be a window" in (form.why_not(here) or "")
        return
    assert str(form) == text and form.why_not(here) is None and form.fidelity(here) is Fidelity.EXACT
    assert form.at(here) == form


EXACT: dict[str, tuple[Window, dict[str, Any], bool]] = {
    "blocks": (Window(4, stride=4), {"facts": Facts(blocks=Blocks(Size.of(4)))}, True),
    "blocks in longer blocks": (Window(8, stride=8), {"facts": Facts(blocks=Blocks(Size.of(4)))}, True),
    "blocks in a window": (Window(7), {"facts": Facts(blocks=Blocks(Size.of(4)))}, True),
    "less than a block": (Window(5), {"facts": Facts(blocks=Blocks(Size.of(4)))}, False),
    "other blocks": (Window(6, stride=6), {"facts": Facts(blocks=Blocks(Size.of(4)))}, False),
    "a row may be empty": (
        Window(4, stride=4),
        {"facts": Facts(blocks=Blocks(Size.of(4))), "empty_row": "uniform"},
        False,
    ),
    "every third": (Window(11, dilation=3), {"facts": Facts(stride=Stride(Size.of(3)))}, True),
    "every third, not all": (Window(9, dilation=3), {"facts": Facts(stride=Stride(Size.of(3)))}, False),
    "every sixth": (Window(11, dilation=3), {"facts": Facts(stride=Stride(Size.of(6)))}, True),
    "every second": (Window(31, dilation=4), {"facts": Facts(stride=Stride(Size.of(2)))}, False),
    "whole grid": (Window(2, 0, "2x8", stride="1x1", borders="shift"), {}, False),
    "a window as long as the axis": (Window("2x8", 0, "2x8", stride="2x8"), {}, True),
    "segments": (
        Window(5, stride=5, offset=3),
        {"facts": Facts(segments=Segments(lengths=(2, 5, 5, 4)))},
        True,
    ),
    "segments that start elsewhere": (
        Window(5, stride=5, offset=2),
        {"facts": Facts(segments=Segments(lengths=(2, 5, 5, 4)))},
        False,
    ),
    "blocks of an unknown length": (
        Window(4, stride=4),
        {"queries": "n", "keys": "n", "facts": Facts(blocks=Blocks(Size.of(4)), band=CAUSAL)},
        True,
    ),
    "other blocks of an unknown length": (
        Window(6, stride=6),
        {"queries": "n", "keys": "n", "facts": Facts(blocks=Blocks(Size.of(4)))},
        False,
    ),
    "dilation hides": (Window(31, dilation=2), {}, False),
    "one class": (Window("1x31", 0, "1x16", dilation="5x1"), {}, True),
}


@pytest.mark.parametrize(("form", "changes", "exact"), EXACT.values(), ids=list(EXACT))
def test_exactness_is_proved(form: Window, changes: dict[str, Any], exact: bool) -> None:
    wanted = Fidelity.EXACT if exact else Fidelity.TRAINING_FREE
    assert form.fidelity(site(**changes)) is wanted


def test_the_grid_is_the_one_that_the_graph_shows() -> None:
    shown = Geometry(1, (Size.of(3), Size.of(5)))
    here = site(queries=16, keys=16, geometry=shown)
    assert str(Window(3, grid="auto").at(here)) == "window:window=3,sinks=1,grid=3x5"
    assert Window(3, 1, "3x5").why_not(here) is None
    refused = Window(3, 1, "5x3").why_not(here) or ""
    assert "the graph shows a grid of 3x5 after 1 tokens" in refused
    unknown = site(queries=16, keys=16)
    assert str(Window(3, grid="auto").at(unknown)) == "window:window=3,sinks=0,grid=auto"


REFUSED: dict[str, tuple[Window, dict[str, Any], str]] = {
    "neighbours in an unknown length": (
        Window(5, borders="shift"),
        {"queries": "n", "keys": "n"},
        "borders=shift needs known numbers",
    ),
    "two unknown lengths": (Window(4, stride=4), {"queries": "n", "keys": "m"}, "as in cross-attention"),
    "stripes behind a cache": (
        Window(4, stride=4),
        {
            "queries": "n",
            "keys": "m",
            "facts": Facts(band=Band(Size.symbol("m") - Size.symbol("n"), None, 0)),
        },
        "a stride or dilation needs known numbers",
    ),
    "a grid of unknown length": (
        Window(3, grid="2x3"),
        {"queries": "n", "keys": "n"},
        "n tokens; a grid needs",
    ),
    "a grid and other keys": (Window(3, grid="2x3"), {"queries": 7}, "as in cross-attention"),
    "more numbers than axes": (Window("3x3x3", 0, "auto"), {}, "has not as many axes as"),
    "more numbers than axes are shown": (
        Window("3x3x3", 0, "auto"),
        {"geometry": Geometry(0, (Size.of(4), Size.of(4)))},
        "has not as many axes as",
    ),
    "cross-attention": (Window(4, dilation=2), {"queries": 7}, "as in cross-attention"),
}


@pytest.mark.parametrize(("form", "changes", "words"), REFUSED.values(), ids=list(REFUSED))
def test_refusals_say_why(form: Window, changes: dict[str, Any], words: str) -> None:
    assert words in (form.why_not(site(**changes)) or "")


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": "3x3"},
        {"window": "3x3", "grid": "2x2x2"},
        {"window": "3y3", "grid": "auto"},
        {"window": 3, "stride": 4},
        {"window": 3, "stride": 2, "offset": 2},
        {"window": 3, "dilation": 0},
        {"window": 3, "dilation": "auto"},
        {"window": 3, "borders": "wrap"},
        {"window": "auto", "stride": 2},
        {"window": "auto", "grid": "auto"},
        {"window": 3, "grid": "2x2x2x2"},
        {"window": "0x3", "grid": "4x4"},
        {"window": "9" * 5000},
    ],
    ids=lambda wrong: str(wrong)[:40],
)
def test_parameters_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Window(**wrong)


def test_it_reads_back_what_it_prints() -> None:
    texts = ["window=auto,sinks=0", "window=7,sinks=1,grid=auto,stride=7,offset=3"]
    texts += ["window=3x5,sinks=0,grid=auto,dilation=2x1,borders=shift"]
    for text in texts:
        assert str(Window.parse(text.split(","))) == f"window:{text}"


def test_every_query_and_key_of_an_axis_is_in_a_tile() -> None:
    for size, length, dilation, stride in itertools.product((1, 5, 16), (1, 3, 8), (1, 2, 7), (1, 2)):
        axis = AxisWindow(size, 4, stride, dilation, moved=True)
        tiles = axis.tiles(length)
        tile, place = tiles.places()
        assert (tiles.queries[tile, place] == range(size)).all()
        for at in range(size):
            keys = tiles.keys[tile[at]]
            low, high = (int(x[tile[at], place[at]]) for x in (tiles.low, tiles.high))
            want, other = axis.seen(axis.positions)
            assert (low, high) == (want[at], other[at])
            assert [k for k in keys if low <= k <= high] == list(range(low, high + 1, dilation))


class WithoutGather(TorchEmitter):
    """An emitter that cannot gather."""

    def gather(self, data: torch.Tensor, indices: torch.Tensor, axis: int) -> torch.Tensor:
        raise AssertionError("gathered")


@pytest.mark.parametrize("form", [Window(7, 1, "16x16"), Window(13, 1, "16x16"), Window(5, borders="shift")])
@pytest.mark.parametrize("bias", [None, "keys", "full"])
def test_where_one_tile_costs_least_nothing_is_gathered(form: Window, bias: str | None) -> None:
    tokens = 257 if form.grid else 9
    a = canonical(tokens, bias=bias)
    result = form.emit(emitter_of(a, WithoutGather), a)
    expected = form.definition(operands(a))
    assert result.shape == expected.shape
    assert (result - expected).abs().max() < 1e-5
    here = site(heads=6, queries=tokens, keys=tokens)
    cost, dense = form.cost(here), Softmax().cost(here)
    assert cost.flops == dense.flops and cost.time is not None and dense.time is not None
    assert int(cost.time) > int(dense.time)


def test_a_long_axis_is_still_in_tiles() -> None:
    a = canonical(1025)
    e = emitter_of(a, WithoutGather)
    with pytest.raises(AssertionError, match="gathered"):
        Window(7, 1, "32x32").emit(e, a)
