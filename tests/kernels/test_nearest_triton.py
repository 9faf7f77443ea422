from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import rewriter.operators  # noqa: F401
from rewriter.algebra.sizes import Size
from rewriter.kernel_sources import KernelCall, small
from rewriter.kernels.merge.definition import match
from rewriter.kernels.merge.matching import emit_match, emit_place, sets_of
from rewriter.kernels.nearest.definition import by_settings
from rewriter.lower.triton_emitter import TritonEmitter
from tests.kernels.launched import poisoned

pytest.importorskip("triton")

SIZES = [(1, 1, 4), (3, 1, 4), (1, 40, 4), (33, 35, 8), (70, 66, 20)]


def run(*given: Tensor | None) -> Tensor:
    from rewriter.kernels.nearest.fused_triton import forward

    with poisoned():
        out, _ = forward(*given)  # type: ignore[arg-type]
    return out


def on_a_lattice(
    first: int, second: int, width: int, sized: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, ...]:
    """Return operands whose products and nearnesses are exact, and often equal."""
    g = torch.Generator().manual_seed(first + second)
    found = [
        torch.randint(-4, 5, (2, n, d), generator=g) / 4
        for n, d in ((first, width), (second, width), (first, 1), (second, 1))
    ]
    if sized:  # m n / (m + n) of these is a half, 1 or 0
        found += [torch.full((2, first, 1), 1.0), torch.randint(0, 2, (2, second, 1), generator=g)]
    return tuple(x.to(dtype) for x in found)


@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize(("first", "second", "width"), SIZES)
def test_definition_is_a_search(first: int, second: int, width: int, sized: bool) -> None:
    x, y, own, other, *sizes = on_a_lattice(first, second, width, sized)
    found = by_settings(x, y, own, other, *sizes)
    for b in range(2):
        for i in range(first):
            best, place = -math.inf, 0
            for j in range(second):
                near = float(math.floor(float(x[b, i] @ y[b, j] + own[b, i] + other[b, j])))
                if sized:
                    m, n = float(sizes[0][b, i]), float(sizes[1][b, j])
                    near = near * m * n / (m + n) if n else -math.inf
                if near > best:
                    best, place = near, j
            assert found[b, :, i].tolist() == [best, place]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize(("first", "second", "width"), SIZES)
def test_kernel_meets_the_definition(
    first: int, second: int, width: int, sized: bool, dtype: torch.dtype
) -> None:
    given = on_a_lattice(first, second, width, sized, dtype)
    assert torch.equal(run(*given), by_settings(*given))


def test_what_it_finds_is_the_nearest_to_rounding() -> None:
    """Squared distances in steps of one over 4096, as token merging asks for them."""
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(1, n, 24, generator=g) for n in (50, 45))
    own, other = 0.5 - 4096 * x.square().sum(-1, keepdim=True), -4096 * y.square().sum(-1, keepdim=True)
    best, place = run(8192 * x, y, own, other)[0]
    apart = torch.cdist(x.double(), y.double())[0].square()
    rounding = 64 * torch.finfo(torch.float32).eps * float(apart.max())
    least = apart.amin(1)
    assert (apart.gather(1, place.long()[:, None])[:, 0] - least).max() <= 1 / 4096 + rounding
    assert (best / 4096 + least).abs().max() <= 0.5 / 4096 + rounding


def test_operands_lie_anywhere() -> None:
    given = on_a_lattice(33, 35, 8, sized=True)

    def apart(t: Tensor) -> Tensor:
        buffer = torch.full((2, t.shape[2] + 3, 2 * t.shape[1] + 1), torch.nan)
        view = buffer.mT[:, 1::2, 2:-1]
        view.copy_(t)
        return view

    assert torch.equal(run(*(apart(t) for t in given)), by_settings(*given))


def test_nan_and_tokens_that_stand_for_none_find_a_place_that_exists() -> None:
    x, y, *terms = on_a_lattice(20, 19, 8)
    x[:, 3], y[:, 5] = torch.nan, torch.nan
    found = run(x, y, *terms)
    assert torch.equal(found, by_settings(x, y, *terms))
    assert found[:, :, 3].tolist() == [[-math.inf, 0]] * 2 and (found[:, 1] != 5).all()
    none = run(x, y, *terms, torch.ones(2, 20, 1), torch.zeros(2, 19, 1))
    assert (none[:, 0] == -math.inf).all() and (none[:, 1] == 0).all()


@pytest.mark.parametrize("sized", [False, True])
def test_the_operator_is_a_good_one(sized: bool) -> None:
    given = on_a_lattice(9, 7, 8, sized)
    torch.library.opcheck(torch.ops.rewriter.nearest.default, given)
    assert torch.equal(torch.ops.rewriter.nearest(*given)[0], by_settings(*given))


def test_a_package_of_kernels_tests_it_on_small_sets() -> None:
    shapes = [(4, n, d) for d in (64, 1) for n in (2048, 2047)]
    call = KernelCall("nearest", tuple((shape, "float32") for shape in shapes), {})
    assert [x[0] for x in small(call).operands if x] == [(1, 70, 64), (1, 70, 64), (1, 70, 1), (1, 70, 1)]


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize(("tokens", "r", "protect"), [(3, 1, 1), (9, 4, 1), (10, 3, 0), (17, 8, 1)])
def test_tokens_are_matched_with_it(tokens: int, r: int, protect: int, hidden: bool) -> None:
    traits = list(torch.randn(2, 2, tokens, 5, generator=torch.Generator().manual_seed(tokens)))
    size = (1 + torch.arange(tokens) % 4).float().expand(2, tokens).clone()
    size[:, 1] = 0.0 if hidden else 1.0
    inputs = (*traits, size[..., None])
    e = TritonEmitter([(x, tuple(map(Size.of, x.shape))) for x in inputs])
    sets = sets_of(e, Size.of(tokens), r, protect)
    matched = emit_match(e, traits, sets, inputs[2], hidden)
    assert torch.equal(emit_place(e, matched, sets), match(traits, r, protect, size).place)
