from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import rewriter
from rewriter.algebra.sizes import Size
from rewriter.engine import rewrite
from rewriter.forms import Canonical, Fidelity, Form
from rewriter.kernels.pooled.form import Pooled
from rewriter.kernels.softmax.form import Softmax
from rewriter.lower.torch_emitter import TorchEmitter
from rewriter.selectors import Selector
from rewriter.sites.patterns import Blocks
from rewriter.sites.site import Band, Facts, Geometry
from tests.kernels.operands import CAUSAL, canonical, emitter_of, operands, site
from tests.kernels.padded import Padded

Place = tuple[int, ...]


def emitted(form: Form, a: Canonical) -> torch.Tensor:
    result: torch.Tensor = form.emit(emitter_of(a), a)
    return result


def one_by_one(
    a: Canonical,
    place: Callable[[int], Place | None],
    cell: Callable[[Place], Place],
    near: Callable[[Place, Place], bool],
    causal: bool,
) -> torch.Tensor:
    """Return attention of each query to a list of keys made for it alone; cells are averaged here and now.

    ``place`` is where a token lies, None for a sink; ``cell`` the cell of a place; ``near`` whether a query
    at a place sees a cell key by key.
    """
    B, H, n, _ = a.q.shape
    result = torch.zeros(B, H, n, a.v.shape[3], dtype=torch.float64)
    for b, h, i in itertools.product(range(B), range(H), range(n)):
        group, mine = h // (H // a.k.shape[1]), place(i)
        seen: list[list[int]] = []
        far: dict[Place, list[int]] = {}
        for j in range(n):
            if a.bias is not None and float(a.bias[b, 0, 0, j]) == -math.inf:
                continue
            theirs = place(j)
            if mine is None or theirs is None or near(mine, cell(theirs)):
                if j <= i or not causal:
                    seen.append([j])
            else:
                far.setdefault(cell(theirs), []).append(j)
        seen += [tokens for tokens in far.values() if not causal or max(tokens) <= i]
        if not seen:
            continue
        keys = torch.stack([a.k[b, group, tokens].double().mean(0) for tokens in seen])
        values = torch.stack([a.v[b, group, tokens].double().mean(0) for tokens in seen])
        scores = a.scale * keys @ a.q[b, h, i].double()
        if a.softcap is not None:
            scores = a.softcap * torch.tanh(scores / a.softcap)
        counts = torch.tensor([float(len(tokens)) for tokens in seen], dtype=torch.float64)
        weights = counts * scores.exp()
        beside = 0.0
        if a.sink is not None:
            beside = float(a.sink.expand(B, H, n, a.sink.shape[3])[b, h, i].exp().sum())
        result[b, h, i] = weights @ values / (weights.sum() + beside)
    return result


def line(a: Canonical, window: int, stride: int, pool: int, sinks: int, causal: bool) -> torch.Tensor:
    """The same on a sequence, with the near cells of a group said in other words than the form's."""
    n = a.q.shape[2]
    cells = -(-n // pool)

    def near(mine: Place, cell: Place) -> bool:
        own = [c for c in range(cells) if c * pool // stride == mine[0] // stride]
        if causal:
            return min(own) - window // pool <= cell[0] <= max(own)
        chosen = list(own)
        own_first, before = own[0], -(-(window - stride) // (2 * pool))
        start = max(0, min(own_first - before, cells - window // pool))
        chosen = list(range(start, start + window // pool))
        return cell[0] in chosen

    return one_by_one(
        a,
        lambda j: None if (j < sinks and not causal) or j < sinks else (j,),
        lambda p: (p[0] // pool,),
        near,
        causal,
    )


def on_grid(a: Canonical, grid: Place, window: int, stride: int, pool: int, sinks: int) -> torch.Tensor:
    cells = [-(-size // pool) for size in grid]

    def place(j: int) -> Place | None:
        found: list[int] = []
        at = j - sinks
        for size in reversed(grid):
            at, coordinate = divmod(at, size)
            found.insert(0, coordinate)
        return None if j < sinks else tuple(found)

    def near(mine: Place, cell: Place) -> bool:
        halo = -(-(window - stride) // (2 * pool))
        for x, c, count in zip(mine, cell, cells, strict=True):
            start = max(0, min(x // stride * stride // pool - halo, count - window // pool))
            if not start <= c < start + window // pool:
                return False
        return True

    return one_by_one(a, place, lambda p: tuple(x // pool for x in p), near, False)


SETTINGS = [(8, 4, 2), (6, 2, 2), (4, 4, 4), (6, 3, 3), (12, 4, 4)]


@pytest.mark.parametrize("band", [None, CAUSAL], ids=["all", "causal"])
@pytest.mark.parametrize("sinks", [0, 2, 9])
@pytest.mark.parametrize(("window", "stride", "pool"), SETTINGS)
def test_definition_and_tiles_are_attention_key_by_key(
    window: int, stride: int, pool: int, sinks: int, band: Band | None
) -> None:
    form = Pooled(window, pool, stride, sinks)
    for length, bias in ((26, None), (25, "keys")):
        a = canonical(length, heads=2, groups=1, band=band, bias=bias, dtype=torch.float64)
        if a.bias is not None:
            a.bias[a.bias.isfinite()] = 0.0
        want = line(a, window, stride, pool, sinks, band is not None)
        torch.testing.assert_close(form.definition(operands(a)), want, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(emitted(form, a), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("grid", [(8, 8), (7, 10), (3, 9), (3, 4, 7), (5, 3, 2)], ids=str)
@pytest.mark.parametrize("sinks", [0, 1, 3])
@pytest.mark.parametrize(("window", "stride", "pool"), [(4, 2, 2), (4, 4, 2), (6, 3, 3)])
def test_grids_are_attention_key_by_key(window: int, stride: int, pool: int, sinks: int, grid: Place) -> None:
    form = Pooled(window, pool, stride, sinks, "x".join(map(str, grid)))
    for bias in (None, "keys"):
        a = canonical(math.prod(grid) + sinks, batch=2, heads=2, groups=1, bias=bias, dtype=torch.float64)
        if a.bias is not None:
            a.bias[a.bias.isfinite()] = 0.0
        want = on_grid(a, grid, window, stride, pool, sinks)
        torch.testing.assert_close(form.definition(operands(a)), want, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(emitted(form, a), want, rtol=1e-10, atol=1e-10)


CASES = list(itertools.product((1, 2, 7, 16, 17, 40), (0, 3), (None, CAUSAL), (None, "keys"), (False, True)))


@pytest.mark.parametrize(("softcap", "sink"), [(None, None), (0.7, "batch")])
def test_tiles_meet_the_definition(softcap: float | None, sink: str | None) -> None:
    form = Pooled(8, 2, 4)
    for length, sinks, band, bias, dynamic in CASES:
        form = Pooled(8, 2, 4, sinks)
        a = canonical(
            length, band=band, bias=bias, dynamic=dynamic, softcap=softcap, sink=sink, heads=2, groups=1
        )
        case = (length, sinks, band, bias, dynamic)
        here = site(queries=a.shape["I"], keys=a.shape["J"], facts=Facts(band=band, dense=band is None))
        if bias is not None and sink is None and form.fidelity(here) is Fidelity.EXACT:
            continue  # an empty row gives what the site gives
        found = emitted(form, a)
        assert found.isfinite().all(), case
        assert torch.allclose(found, form.definition(operands(a)), rtol=1e-5, atol=1e-5), case


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    for form, band in ((Pooled(8, 2, 4, 1), CAUSAL), (Pooled(4, 2, 2, 1, "6x6"), None)):
        a = canonical(37, band=band, dtype=dtype)
        found = emitted(form, a)
        assert found.dtype == dtype
        error = (found.double() - form.definition(operands(a)).double()).abs().max()
        assert error <= 8 * torch.finfo(dtype).eps * a.v.abs().max()


def test_gradients_are_finite_and_right() -> None:
    for form, band in (
        (Pooled(8, 2, 4, 1), CAUSAL),
        (Pooled(8, 2, 4, 1), None),
        (Pooled(4, 2, 2, 1, "6x6"), None),
    ):
        a = canonical(37, band=band)
        parts = [x.requires_grad_() for x in (a.q, a.k, a.v)]
        found = torch.autograd.grad(emitted(form, a).sum(), parts)
        want = torch.autograd.grad(form.definition(operands(a)).sum(), parts)
        for got, right in zip(found, want, strict=True):
            torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-5)


EXACT: dict[str, tuple[Pooled, dict[str, Any], bool]] = {
    "cells of one key": (Pooled(4, 1), {}, True),
    "cells of one key, any length": (Pooled(4, 1), {"queries": "n", "keys": "n"}, True),
    "window of the length": (Pooled(16, 4), {}, True),
    "window of the length, causal": (Pooled(16, 4), {"facts": Facts(band=CAUSAL, only_band=True)}, True),
    "window of all but a group": (Pooled(12, 2, 4), {"facts": Facts(band=CAUSAL, only_band=True)}, True),
    "a causal group less": (Pooled(8, 2, 4), {"facts": Facts(band=CAUSAL, only_band=True)}, False),
    "a cell less": (Pooled(12, 4), {}, False),
    "a last group that ends behind the last key": (
        Pooled(10, 2, 6),
        {"facts": Facts(band=CAUSAL, only_band=True)},
        False,
    ),
    "unknown length": (Pooled(512, 4), {"queries": "n", "keys": "n"}, False),
    "whole grid": (Pooled(4, 2, grid="4x4"), {}, True),
    "whole box": (Pooled("2x4x2", 2, grid="2x4x2"), {}, True),
    "one row of cells less": (Pooled("2x8", 2, grid="4x4"), {}, False),
    "sinks only": (Pooled(16, 4, 16, 16), {}, True),
}


@pytest.mark.parametrize(("form", "changes", "exact"), EXACT.values(), ids=list(EXACT))
def test_exactness_is_proved(form: Pooled, changes: dict[str, Any], exact: bool) -> None:
    here = site(**changes)
    assert form.why_not(here) is None
    assert form.fidelity(here) is (Fidelity.EXACT if exact else Fidelity.TRAINING_FREE)


@pytest.mark.parametrize("band", [None, CAUSAL], ids=["all", "causal"])
@pytest.mark.parametrize(
    "form", [Pooled(4, 1), Pooled(4, 1, 2, 2), Pooled(32, 4), Pooled(24, 4, 8, 1)], ids=str
)
def test_exact_limits_are_the_site(form: Pooled, band: Band | None) -> None:
    from rewriter.kernels.pooled.lowering import emit_line

    a = canonical(21, band=band)
    exact = Softmax().emit(emitter_of(a), a)
    torch.testing.assert_close(emitted(form, a), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(form.definition(operands(a)), exact, rtol=1e-5, atol=1e-5)
    (axis,) = form._axes(band)
    tiled = emit_line(emitter_of(a), a, axis, form._first(band), "never")
    torch.testing.assert_close(tiled, exact, rtol=1e-5, atol=1e-5)


def test_exact_limits_of_a_grid_are_the_site() -> None:
    from rewriter.kernels.pooled.lowering import emit_plane

    a = canonical(31)
    exact = Softmax().emit(emitter_of(a), a)
    form = Pooled(4, 1, 2, 1, "5x6")
    torch.testing.assert_close(form.definition(operands(a)), exact, rtol=1e-5, atol=1e-5)
    tiled = emit_plane(emitter_of(a), a, form._axes(None), (5, 6), 1, "never")
    torch.testing.assert_close(tiled, exact, rtol=1e-5, atol=1e-5)


REFUSED: dict[str, tuple[Pooled, dict[str, Any], str]] = {
    "cross-attention": (Pooled(8), {"queries": 7}, "need one number"),
    "constant keys": (Pooled(8), {"constant": ("k",)}, "do not depend on the inputs"),
    "a cache": (Pooled(8), {"keys": 20, "facts": Facts(band=Band(Size.of(4), None, 0))}, "behind a cache"),
    "a window": (Pooled(8), {"facts": Facts(band=Band(Size.of(0), 4, 0))}, "a window of its own"),
    "a bias": (Pooled(8), {"facts": Facts(bias=True)}, "not proved to be the same for every query"),
    "an unknown mask": (
        Pooled(8),
        {"facts": Facts(unknown=True)},
        "not proved to be the same for every query",
    ),
    "blocks": (
        Pooled(8),
        {"facts": Facts(blocks=Blocks(Size.of(4)))},
        "not proved to be the same for every query",
    ),
    "hidden queries": (
        Pooled(8),
        {"facts": Facts(hides_queries=True)},
        "not proved to be the same for every query",
    ),
    "not a square": (Pooled(4, 2, grid="auto"), {"queries": 17, "keys": 17}, "not a square"),
    "another grid": (Pooled(4, 2, grid="3x5"), {}, "not 3x5"),
    "not the grid of the graph": (
        Pooled(4, 2, grid="2x8"),
        {"geometry": Geometry(0, (Size.of(4), Size.of(4)))},
        "the graph shows a grid of 4x4",
    ),
    "a window of three axes on a square": (
        Pooled("4x4x4", 2, grid="auto"),
        {},
        "not as many axes",
    ),
    "a causal grid": (Pooled(4, 2, grid="4x4"), {"facts": Facts(band=CAUSAL)}, "without such a mask"),
    "a grid of unknown size": (
        Pooled(4, 2, grid="auto"),
        {"queries": "n", "keys": "n"},
        "fix the input size",
    ),
}


@pytest.mark.parametrize(("form", "changes", "words"), REFUSED.values(), ids=list(REFUSED))
def test_refusals_say_why(form: Pooled, changes: dict[str, Any], words: str) -> None:
    assert words in (form.why_not(site(**changes)) or "")


def test_hidden_keys_are_no_reason_to_refuse() -> None:
    for facts in (Facts(key_padding=True, hides_keys=True), Facts(band=CAUSAL, key_padding=True)):
        assert Pooled(8).why_not(site(facts=facts)) is None


@pytest.mark.parametrize("fill", [-1e4, -1e9, torch.finfo(torch.float32).min])
def test_keys_may_be_hidden_by_any_number(fill: float) -> None:
    x = torch.randn(2, 2, 21, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 21, dtype=torch.int64)
    mask[1, 13:] = 0

    def rewritten(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        program = rewriter.trace(Padded(fill), (x, mask))
        new, report = rewrite(program, [(Pooled(4, 2), Selector.parse("all"))])
        assert [s.reason for s in report.sites] == [None]
        found: torch.Tensor = new.run(x, mask)[0][:, :, :13]
        return found

    found = rewritten(x, mask)
    x[1, :, 13:] = 99.0
    torch.testing.assert_close(rewritten(x, mask), found, rtol=1e-5, atol=1e-6)
    x[0, :, 13:] = 99.0
    mask[0, 13:] = 0
    with pytest.raises(AssertionError):
        torch.testing.assert_close(rewritten(x, mask)[0], found[0], rtol=1e-5, atol=1e-6)


def test_heads_that_weigh_keys_apart_have_no_averages_in_common() -> None:
    x, mask = torch.randn(1, 2, 9, 8), torch.ones(1, 9, dtype=torch.int64)
    (here,) = rewriter.trace(Padded(-1e4, heads=2), (x, mask)).sites
    assert "every query and head" in (Pooled(4, 2).why_not(here) or "")


def test_a_mask_that_the_graph_holds_for_every_head_and_query_is_read_once() -> None:
    form, a = Pooled(8, 2, 4, 1), canonical(26, bias="keys")
    assert a.bias is not None
    a.bias[a.bias.isfinite()] = 0.0
    want = emitted(form, a)
    a = replace(a, bias=a.bias.expand(2, 4, 26, 26).contiguous())
    torch.testing.assert_close(emitted(form, a), want)
    torch.testing.assert_close(form.definition(operands(a)), want, rtol=1e-5, atol=1e-5)


def test_the_grid_is_the_one_that_the_graph_shows() -> None:
    here = site(queries=25, keys=25, geometry=Geometry(1, (Size.of(4), Size.of(6))))
    assert str(Pooled(4, 2, grid="auto").at(here)) == "pooled:window=4,pool=2,sinks=1,grid=4x6"
    here = site(queries=25, keys=25, geometry=Geometry(1, (Size.of(2), Size.of(3), Size.of(4))))
    assert str(Pooled("2x4x4", 2, grid="auto").at(here)) == "pooled:window=2x4x4,pool=2,sinks=1,grid=2x3x4"


class Counting(TorchEmitter):
    scores = 0

    def attention(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        self.scores += q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
        return super().attention(q, k, v, **options)


@pytest.mark.parametrize(
    ("form", "band", "tokens", "share"),
    [
        (Pooled(16, 4, 8, 1, "32x32"), None, 1025, 0.31),
        (Pooled(64, 32, 64, 4), CAUSAL, 1024, 0.17),
        (Pooled(256, 32, sinks=4), CAUSAL, 1024, 0.36),
        (Pooled(128, 16), None, 1024, 0.2),
        (Pooled(16, 4, 8, 0, "19x30"), None, 570, 0.67),
    ],
    ids=str,
)
def test_less_is_computed_and_cost_counts_it(
    form: Pooled, band: Band | None, tokens: int, share: float
) -> None:
    a = canonical(tokens, batch=1, heads=1, groups=1, band=band)
    e = emitter_of(a, Counting)
    assert isinstance(e, Counting)
    found = form.emit(e, a)
    torch.testing.assert_close(found, form.definition(operands(a)), rtol=1e-4, atol=1e-5)
    assert e.scores < share * tokens**2
    here = site(heads=Size.of(1), queries=tokens, keys=tokens, facts=Facts(band=band))
    said = int(form.cost(here).flops) / int(Softmax().cost(here).flops)
    assert said == pytest.approx(e.scores / tokens**2, rel=0.05)


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": 0},
        {"window": 6},
        {"window": 8, "stride": 6},
        {"window": 8, "stride": 12},
        {"window": 8, "sinks": -1},
        {"window": 8, "grid": "4"},
        {"window": 8, "grid": "2x2x2x2"},
        {"window": "8x8x8", "grid": "4x4"},
        {"window": "8x8", "pool": "2x2x2", "grid": "auto"},
        {"window": "8x8"},
    ],
    ids=str,
)
def test_parameters_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|axes"):
        Pooled(**wrong)


def test_it_reads_back_what_it_prints() -> None:
    for text in ("window=8,pool=4,sinks=0", "window=8x16,pool=2x4,stride=4x8,sinks=1,grid=auto"):
        assert str(Pooled.parse(text.split(","))) == f"pooled:{text}"


def test_groups_of_a_causal_site_are_a_quarter_of_the_window_but_no_shorter_than_what_runs_well() -> None:
    for window, stride in ((16, 16), (64, 32), (128, 32), (512, 128)):
        a = canonical(2 * window + 40, batch=1, heads=1, groups=1, band=CAUSAL)
        found = [form.definition(operands(a)) for form in (Pooled(window, 8), Pooled(window, 8, stride))]
        torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize("causal", [False, True])
def test_cost_of_a_length_that_is_not_known_is_that_of_the_length_it_becomes(causal: bool) -> None:
    form, facts = Pooled(window=64, pool=8, sinks=4), Facts(band=CAUSAL) if causal else Facts(dense=True)
    n = Size.symbol("n")
    open_cost = form.cost(replace(site(facts=facts), queries=n, keys=n))
    known = form.cost(site(queries=4096, keys=4096, facts=facts))
    assert open_cost.time is None
    said, promised = int(open_cost.flops.substitute({"n": 4096})), int(known.flops)
    assert abs(said - promised) <= 0.02 * promised
