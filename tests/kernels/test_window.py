from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from rewriter.algebra.sizes import Size
from rewriter.forms import Canonical, Fidelity
from rewriter.kernels.softmax.form import Softmax
from rewriter.kernels.window import form as form_module
from rewriter.kernels.window import lowering
from rewriter.kernels.window.axes import AxisTiles, AxisWindow, tile_axes
from rewriter.kernels.window.definition import window_attention, window_mask
from rewriter.kernels.window.form import Window
from rewriter.kernels.window.lowering import tile_length
from rewriter.lower.torch_emitter import TorchEmitter
from rewriter.sites.site import Band, Facts
from rewriter.verify.binding import bound_size
from tests.kernels.operands import CAUSAL, by_hand, canonical, emitter_of, operands, site


class Counting(TorchEmitter):
    """Counts the scores that are computed."""

    scores = 0

    def attention(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        self.scores += q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
        return super().attention(q, k, v, **options)


def defined(form: Window, a: Canonical) -> torch.Tensor:
    return form.definition(operands(a))


def tiled(monkeypatch: pytest.MonkeyPatch, length: int = 8, tile: tuple[int, int] = (2, 4)) -> None:
    """Make short sequences worth tiles."""
    monkeypatch.setattr(lowering, "tile_length", lambda *_: length)
    sides = {1: (length, length), 2: tile}

    def tiles(found: Sequence[AxisWindow], sinks: int) -> tuple[AxisTiles, ...]:
        return tuple(x.tiles(min(n, x.count)) for x, n in zip(found, sides[len(found)], strict=False))

    monkeypatch.setattr(form_module, "tile_axes", tiles)


@pytest.mark.parametrize("sinks", [0, 2])
@pytest.mark.parametrize("window", [1, 2, 5])
def test_definition_is_attention_by_hand(window: int, sinks: int) -> None:
    a = canonical(9, batch=1, bias="full", band=CAUSAL, dtype=torch.float64)
    want = by_hand(a, lambda i, j: j <= i and (i - j < window or j < sinks))
    torch.testing.assert_close(defined(Window(window, sinks), a), want, rtol=1e-12, atol=1e-12)
    a = replace(a, band=None)
    want = by_hand(a, lambda i, j: abs(i - j) <= window // 2 or j < sinks or i < sinks)
    torch.testing.assert_close(defined(Window(window, sinks), a), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sinks", [0, 1])
def test_definition_on_a_grid_is_attention_by_hand(sinks: int) -> None:
    rows, columns, a = 3, 4, canonical(12 + sinks, batch=1, dtype=torch.float64)

    def sees(i: int, j: int) -> bool:
        if i < sinks or j < sinks:
            return True
        (y, x), (v, u) = divmod(i - sinks, columns), divmod(j - sinks, columns)
        return max(abs(y - v), abs(x - u)) <= 1

    found = defined(Window(3, sinks, f"{rows}x{columns}"), a)
    torch.testing.assert_close(found, by_hand(a, sees), rtol=1e-12, atol=1e-12)


def test_definition_gives_zero_where_the_window_holds_no_visible_key() -> None:
    a = canonical(6, bias="keys", band=CAUSAL)
    assert a.bias is not None
    a.bias[0, ..., :2], a.bias[0, ..., 2:] = -math.inf, 0.0
    found = defined(Window(2), a)
    assert (found[0, :, :2] == 0).all() and found.isfinite().all() and (found[:, :, 2:] != 0).all()


def test_a_query_behind_a_cache_stands_at_its_position() -> None:
    mask = window_mask(2, 6, 2, 1, band=Band(Size.of(4), None, 0))
    assert mask.int().tolist() == [[1, 0, 0, 1, 1, 0], [1, 0, 0, 0, 1, 1]]


SLIDING = list(
    itertools.product(
        (1, 7, 8, 9, 33), (1, 2, 7, 40), (0, 1, 5), (CAUSAL, None), (None, "keys", "full", "one batch")
    )
)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("length", [None, 8], ids=["own tiles", "short tiles"])
def test_tiles_meet_the_definition(
    monkeypatch: pytest.MonkeyPatch, dynamic: bool, length: int | None
) -> None:
    if length is not None:
        tiled(monkeypatch, length)
    for queries, window, sinks, band, bias in SLIDING:
        a, form = canonical(queries, bias=bias, band=band, dynamic=dynamic), Window(window, sinks)
        if bias == "keys" and (sinks >= queries or window >= queries):
            continue  # it is the site itself then, and an empty row gives what the site gives
        found = form.emit(emitter_of(a), a)
        assert torch.allclose(found, defined(form, a), rtol=1e-5, atol=1e-5), (
            queries,
            window,
            sinks,
            band,
            bias,
        )


BANDS = {
    "cache": (12, 17, Band(Size.of(5), None, 0)),
    "keys behind the last query": (12, 17, Band(Size.of(2), None, 0)),
    "the site's own window is wider": (17, 17, Band(Size.of(0), 9, 0)),
    "the site's own window has a future": (17, 17, Band(Size.of(0), 9, 2)),
    "one side": (17, 17, Band(Size.of(0), 3, None)),
}


@pytest.mark.parametrize(("queries", "keys", "band"), BANDS.values(), ids=list(BANDS))
@pytest.mark.parametrize("sinks", [0, 2])
@pytest.mark.parametrize("short", [False, True])
def test_tiles_keep_the_mask_of_the_site(
    monkeypatch: pytest.MonkeyPatch, queries: int, keys: int, band: Band, sinks: int, short: bool
) -> None:
    if short:
        tiled(monkeypatch, 4)
    a, form = canonical(queries, keys, band=band), Window(5, sinks)
    assert form.why_not(site(queries=queries, keys=keys, facts=Facts(band=band))) is None
    torch.testing.assert_close(form.emit(emitter_of(a), a), defined(form, a), rtol=1e-5, atol=1e-5)


TRAITS = [(0.7, None), (None, "batch"), (0.7, "full")]
SOME_SLIDING = list(itertools.product((1, 9, 33), (1, 7), (0, 5), (CAUSAL, None), (None, "keys", "full")))
SOME_GRIDS = list(itertools.product(((3, 5), (9, 7)), (1, 3), (0, 3), (None, "keys", "full")))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("length", [None, 8], ids=["own tiles", "short tiles"])
@pytest.mark.parametrize(("softcap", "sink"), TRAITS)
def test_tiles_cap_scores_and_let_sinks_take_weight(
    monkeypatch: pytest.MonkeyPatch,
    dynamic: bool,
    length: int | None,
    softcap: float | None,
    sink: str | None,
) -> None:
    if length is not None:
        tiled(monkeypatch, length)
    for queries, window, sinks, band, bias in SOME_SLIDING:
        a = canonical(queries, bias=bias, band=band, dynamic=dynamic, softcap=softcap, sink=sink)
        form = Window(window, sinks)
        if bias == "keys" and sink is None and (sinks >= queries or window >= queries):
            continue  # it is the site itself then, and an empty row gives what the site gives
        found, want = form.emit(emitter_of(a), a), defined(form, a)
        case = (queries, window, sinks, band, bias)
        assert torch.allclose(found, want, rtol=1e-5, atol=1e-5), case


def test_a_sink_takes_all_weight_of_a_query_whose_tile_holds_no_visible_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiled(monkeypatch, 4)
    a, form = canonical(20, bias="keys", band=CAUSAL, sink="heads"), Window(2)
    assert a.bias is not None
    a.bias[0, ..., :8], a.bias[0, ..., 8:] = -math.inf, 0.0
    found = form.emit(emitter_of(a), a)
    assert (found[0, :, :8] == 0).all() and (found[0, :, 8:] != 0).all() and found.isfinite().all()
    torch.testing.assert_close(found, defined(form, a), rtol=1e-5, atol=1e-5)


GRIDS = list(
    itertools.product(((1, 1), (3, 5), (8, 8), (9, 7)), (1, 3, 7, 20), (0, 1, 3), (None, "keys", "full"))
)


@pytest.mark.parametrize("tile", [None, (2, 4), (4, 3)], ids=str)
def test_tiles_of_a_grid_meet_the_definition(
    monkeypatch: pytest.MonkeyPatch, tile: tuple[int, int] | None
) -> None:
    if tile is not None:
        tiled(monkeypatch, tile=tile)
    for (rows, columns), window, sinks, bias in GRIDS:
        form = Window(window, sinks, f"{rows}x{columns}")
        a = canonical(rows * columns + sinks, bias=bias)
        if bias == "keys" and (window // 2 >= max(rows, columns) - 1):
            continue  # the site itself
        found = form.emit(emitter_of(a), a)
        assert torch.allclose(found, defined(form, a), rtol=1e-5, atol=1e-5), (
            rows,
            columns,
            window,
            sinks,
            bias,
        )


@pytest.mark.parametrize("tile", [None, (2, 4), (4, 3)], ids=str)
@pytest.mark.parametrize(("softcap", "sink"), TRAITS)
def test_tiles_of_a_grid_cap_scores_and_let_sinks_take_weight(
    monkeypatch: pytest.MonkeyPatch, tile: tuple[int, int] | None, softcap: float | None, sink: str | None
) -> None:
    if tile is not None:
        tiled(monkeypatch, tile=tile)
    for (rows, columns), window, sinks, bias in SOME_GRIDS:
        form = Window(window, sinks, f"{rows}x{columns}")
        a = canonical(rows * columns + sinks, bias=bias, softcap=softcap, sink=sink)
        if bias == "keys" and sink is None and (window // 2 >= max(rows, columns) - 1):
            continue  # the site itself
        found, want = form.emit(emitter_of(a), a), defined(form, a)
        assert torch.allclose(found, want, rtol=1e-5, atol=1e-5), (rows, columns, window, sinks, bias)


def test_a_square_grid_is_found() -> None:
    a = canonical(26)
    auto, given = Window(3, 1, "auto"), Window(3, 1, "5x5")
    assert torch.equal(auto.emit(emitter_of(a), a), given.emit(emitter_of(a), a))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    tiled(monkeypatch)
    plain: dict[str, Any] = {}
    every = [(Window(5, 2), CAUSAL, plain), (Window(3, 1, "4x4"), None, plain)]
    every += [(Window(5, 2), CAUSAL, {"softcap": 0.7, "sink": "heads"})]
    for form, band, traits in every:
        a = canonical(17, band=band, dtype=dtype, **traits)
        found = form.emit(emitter_of(a), a)
        assert found.dtype == dtype
        error = (found.double() - defined(form, a).double()).abs().max()
        assert error <= 8 * torch.finfo(dtype).eps * a.v.abs().max()


@pytest.mark.parametrize("bias", [None, "keys"])
@pytest.mark.parametrize("sinks", [0, 3])
def test_gradients_are_finite_and_right(
    monkeypatch: pytest.MonkeyPatch, sinks: int, bias: str | None
) -> None:
    tiled(monkeypatch, 8)
    for form, band in ((Window(1, sinks), CAUSAL), (Window(3, sinks), None), (Window(1, sinks, "3x6"), None)):
        a = canonical(18 + sinks * (form.grid is not None), band=band, bias=bias)
        operands = [x.requires_grad_() for x in (a.q, a.k, a.v)]
        found = torch.autograd.grad(form.emit(emitter_of(a), a).sum(), operands, materialize_grads=True)
        assert all(got.isfinite().all() for got in found)
        if bias is None:  # the definition has no gradient where a row is empty
            want = torch.autograd.grad(defined(form, a).sum(), operands, materialize_grads=True)
            for got, right in zip(found, want, strict=True):
                torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [None, "full"])
@pytest.mark.parametrize("band", [CAUSAL, None, Band(Size.of(0), 3, 0), Band(Size.of(0), 4, 4)], ids=str)
def test_a_window_as_long_as_the_sequence_is_the_site(band: Band | None, bias: str | None) -> None:
    a, form = canonical(16, band=band, bias=bias), Window(16 if band and band.right == 0 else 31)
    here = site(facts=Facts(band=band, dense=band is None))
    assert form.fidelity(here) is Fidelity.EXACT
    exact = Softmax().emit(emitter_of(a), a)
    torch.testing.assert_close(form.emit(emitter_of(a), a), exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(defined(form, a), exact, rtol=1e-5, atol=1e-5)


EXACT = {
    "window of the length": (Window(16), {"facts": Facts(band=CAUSAL)}, True),
    "one key less": (Window(15), {"facts": Facts(band=CAUSAL)}, False),
    "both sides": (Window(30), {}, True),
    "one less on both sides": (Window(29), {}, False),
    "all are sinks": (Window(1, 16), {}, True),
    "the site's own window": (Window(5), {"facts": Facts(band=Band(Size.of(0), 4, 0))}, True),
    "less than the site's own window": (Window(4), {"facts": Facts(band=Band(Size.of(0), 4, 0))}, False),
    "unknown length": (Window(512), {"queries": "n", "keys": "n", "facts": Facts(band=CAUSAL)}, False),
    "whole grid": (Window(6, 0, "4x4"), {}, True),
    "all but the corners": (Window(5, 0, "4x4"), {}, False),
    "behind a cache": (Window(19), {"keys": 19, "facts": Facts(band=Band(Size.of(3), None, 0))}, True),
    "cache not seen": (Window(18), {"keys": 19, "facts": Facts(band=Band(Size.of(3), None, 0))}, False),
}


@pytest.mark.parametrize(("form", "changes", "exact"), EXACT.values(), ids=list(EXACT))
def test_exactness_is_proved(form: Window, changes: dict[str, Any], exact: bool) -> None:
    wanted = Fidelity.EXACT if exact else Fidelity.TRAINING_FREE
    assert form.fidelity(site(**changes)) is wanted
    assert form.why_not(site(**changes)) is None


REFUSED = {
    "cross-attention": (Window(4), {"queries": 7}, "cross-attention"),
    "constant keys": (Window(4), {"constant": ("k", "v")}, "do not depend on the inputs"),
    "two dynamic lengths": (Window(4), {"queries": "n", "keys": "m"}, "cross-attention"),
    "queries before the keys": (
        Window(4),
        {"facts": Facts(band=Band(Size.of(-1), None, 0))},
        "not proved to lie",
    ),
    "queries after the keys": (
        Window(4),
        {"facts": Facts(band=Band(Size.of(1), None, 0))},
        "not proved to lie",
    ),
    "sinks in the middle": (
        Window(4, 1),
        {"keys": 20, "facts": Facts(band=Band(Size.of(2), None, 3))},
        "sinks need",
    ),
    "not a square": (Window(3, 0, "auto"), {"queries": 17, "keys": 17}, "17 after 0 sinks"),
    "another grid": (Window(3, 0, "3x5"), {}, "not 3x5"),
    "grid of a causal site": (Window(3, 0, "4x4"), {"facts": Facts(band=CAUSAL)}, "without such a mask"),
    "grid of unknown size": (Window(3, 1, "auto"), {"queries": "n", "keys": "n"}, "fix the input size"),
}


@pytest.mark.parametrize(("form", "changes", "words"), REFUSED.values(), ids=list(REFUSED))
def test_refusals_say_why(form: Window, changes: dict[str, Any], words: str) -> None:
    assert words in (form.why_not(site(**changes)) or "")


@pytest.mark.parametrize(
    ("form", "band", "tokens", "share"),
    [
        (Window(64, 4), CAUSAL, 1024, 0.25),
        (Window(64, 4), None, 1024, 0.25),
        (Window(7, 1, "auto"), None, 32 * 32 + 1, 0.25),
        (Window(13, 1, "auto"), None, 64 * 64 + 1, 0.12),
    ],
    ids=str,
)
def test_less_is_computed(form: Window, band: Band | None, tokens: int, share: float) -> None:
    a = canonical(tokens, batch=1, heads=1, groups=1, band=band)
    e = emitter_of(a, Counting)
    assert isinstance(e, Counting)
    found = form.emit(e, a)
    assert 0 < e.scores < share * tokens**2
    torch.testing.assert_close(found, defined(form, a), rtol=1e-4, atol=1e-5)


def test_the_cost_of_an_unknown_length_counts_no_more_keys_than_there_are() -> None:
    here = site(queries="n", keys="n", facts=Facts(band=CAUSAL))
    costs = Window(4096, 4).cost(here).flops, Softmax().cost(here).flops
    for tokens, met in ((64, 64 + 4), (1024, 1024 + 4), (65536, 4096 + 256 + 3)):
        flops, dense = (bound_size(size, {"n": tokens}) for size in costs)
        assert flops / dense == pytest.approx(met / tokens, rel=1e-3)


def test_cost_counts_what_is_computed() -> None:
    forms = [
        (Window(64, 4), CAUSAL, 1024),
        (Window(7, 1, "auto"), None, 1025),
        (Window(7, 1, "auto"), None, 26),
    ]
    forms += [(Window(32), Band(Size.of(0), 31, 0), 1024), (Window(2000), CAUSAL, 1024)]
    for form, band, tokens in forms:
        a = canonical(tokens, batch=1, heads=1, groups=1, band=band)
        e = emitter_of(a, Counting)
        assert isinstance(e, Counting)
        form.emit(e, a)
        here = site(heads=Size.of(1), queries=tokens, keys=tokens, facts=Facts(band=band))
        share = int(form.cost(here).flops) / int(Softmax().cost(here).flops)
        assert share == pytest.approx(e.scores / tokens**2, rel=0.05)


def test_a_window_that_the_site_has_saves_work_and_stays_exact() -> None:
    band = Band(Size.of(0), 31, 0)
    a = canonical(1024, batch=1, heads=1, groups=1, band=band)
    e = emitter_of(a, Counting)
    assert isinstance(e, Counting)
    found = Window(32).emit(e, a)
    assert e.scores < 0.15 * 1024**2
    torch.testing.assert_close(found, Softmax().emit(emitter_of(a), a), rtol=1e-4, atol=1e-5)


def test_large_sites_are_split_and_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    a, form = canonical(700, bias="keys", band=CAUSAL, sink="full"), Window(40, 3)
    whole = form.emit(emitter_of(a), a)
    monkeypatch.setattr("rewriter.kernels.window.tiles.LARGEST_COPY", 20_000)
    e = emitter_of(a, Counting)
    assert torch.allclose(form.emit(e, a), whole, atol=1e-6)


def test_short_sequences_get_a_mask_and_long_ones_tiles() -> None:
    assert tile_length(14, 0, 20, 20) is None
    assert tile_length(63, 4, 4096, 4096) in (64, 128)
    assert tile_length(63, 4, None, None) in (64, 128)
    assert tile_length(3, 300, None, None) == 300
    assert [t.length for t in tile_axes([AxisWindow(4, 7)] * 2, 1)] == [4, 4]
    assert [t.length for t in tile_axes([AxisWindow(64, 13)] * 2, 1)] == [8, 8]


@pytest.mark.parametrize(
    "wrong", [{"window": 0}, {"window": 3, "sinks": -1}, {"window": 3, "grid": "3"}], ids=str
)
def test_parameters_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Window(**wrong)


def test_it_reads_back_what_it_prints() -> None:
    for form in (Window(5), Window(13, 1, "auto"), Window(7, 0, "3x5")):
        assert Window.parse(str(form).partition(":")[2].split(",")) == form


def test_attention_class_matches_the_function() -> None:
    a = canonical(7, band=CAUSAL)
    want = window_attention(operands(a), window=3, sinks=1)
    assert torch.equal(defined(Window(3, 1), a), want)
