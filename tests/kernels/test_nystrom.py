from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from rewriter.algebra.sizes import Size
from rewriter.forms import Canonical, Fidelity
from rewriter.kernels.nystrom.definition import nystrom_attention, pseudo_inverse
from rewriter.kernels.nystrom.form import Nystrom
from rewriter.kernels.softmax.definition import softmax_attention
from rewriter.kernels.softmax.form import Softmax
from rewriter.lower.torch_emitter import TorchEmitter
from rewriter.sites.site import Facts
from tests.kernels.operands import CAUSAL, by_hand, canonical, emitter_of, operands, site

PADDED = Facts(key_padding=True, hides_keys=True, by_keys=True)


def emitted(form: Nystrom, a: Canonical) -> torch.Tensor:
    result: torch.Tensor = form.emit(emitter_of(a), a)
    return result


def defined(form: Nystrom, a: Canonical) -> torch.Tensor:
    return form.definition(operands(a))


def padded(tokens: int, **options: Any) -> Canonical:
    """Return operands of two sequences: some tokens of the first are padding, and three of the second."""
    a = canonical(tokens, bias="keys", **options)
    assert a.bias is not None
    a.bias.zero_()
    a.bias[0, ..., tokens // 2 :: 3] = torch.finfo(a.bias.dtype).min
    a.bias[1, ..., :3] = -math.inf
    return a


@pytest.mark.parametrize("bias", [None, "keys"])
def test_definition_is_three_matrices_by_hand(bias: str | None) -> None:
    a = canonical(11, dtype=torch.float64, groups=4)
    at = [1, 5, 9]
    if bias is not None:
        a = replace(a, bias=torch.randn(2, 1, 1, 11, dtype=torch.float64))
        a.bias[..., [0, 10]] = -math.inf  # type: ignore[index]
        at = [2, 5, 8]
    few = None if a.bias is None else a.bias[..., at]
    q, k = a.q[:, :, at], a.k[:, :, at]
    gathered = by_hand(replace(a, q=q), lambda i, j: True)
    middle = (a.scale * q @ k.mT + (0.0 if few is None else few)).exp()
    middle = middle / middle.sum(-1, keepdim=True)
    inverse = torch.linalg.inv(middle)
    torch.testing.assert_close(middle @ inverse, torch.eye(3, dtype=torch.float64).expand_as(middle))
    plain = Canonical(a.q, k, inverse @ gathered, few, None, a.scale, "never", a.shape)
    want = by_hand(plain, lambda i, j: True)
    found = nystrom_attention(operands(a), count=3, iterations=None)
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(defined(Nystrom(3, iterations=30), a), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rank", [3, 8])
def test_iterations_reach_the_pseudo_inverse(rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 8, rank, generator=generator, dtype=torch.float64)
    weights = (scores + 4 * torch.eye(8, rank, dtype=torch.float64)).softmax(-1)
    tall = torch.cat([weights, torch.zeros(2, 8, 8 - rank, dtype=torch.float64)], dim=-1)
    want = torch.linalg.pinv(tall)
    errors = [float((pseudo_inverse(tall, n) - want).abs().max()) for n in (1, 2, 3, 12)]
    assert errors[0] > errors[1] > errors[2] > 1e-12 > errors[3]


def test_one_iteration_is_the_equation() -> None:
    a = torch.tensor([[0.5, 0.5], [0.25, 0.75]], dtype=torch.float64)
    z, unit = a.T / 1.25, torch.eye(2, dtype=torch.float64)
    want = 0.25 * z @ (13 * unit - a @ z @ (15 * unit - a @ z @ (7 * unit - a @ z)))
    torch.testing.assert_close(pseudo_inverse(a, 1), want, rtol=1e-14, atol=0)


SEQUENCES = list(
    itertools.product((1, 2, 9, 40), (1, 4, 7), (0, 1, 5), ("stride", "mean"), (None, "padding", "one batch"))
)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_lowering_meets_the_definition(dynamic: bool) -> None:
    for tokens, landmarks, protect, pool, bias in SEQUENCES:
        if bias == "padding":
            a = padded(tokens, dynamic=dynamic, dtype=torch.float64)
        else:
            a = canonical(tokens, bias="keys", dynamic=dynamic, dtype=torch.float64)
            a = replace(a, bias=None if a.bias is None or bias is None else a.bias[:1])
        form = Nystrom(landmarks, protect, pool=pool)
        here = site(queries=a.shape["I"], keys=a.shape["J"])
        if form.fidelity(here) is Fidelity.EXACT:
            continue
        found, want = emitted(form, a), defined(form, a)
        assert torch.allclose(found, want, rtol=1e-8, atol=1e-8), (tokens, landmarks, protect, pool, bias)


@pytest.mark.parametrize("pool", ["stride", "mean"])
@pytest.mark.parametrize("protect", [0, 3])
@pytest.mark.parametrize(("grid", "side"), [((2, 2), 1), ((7, 5), 3), ((8, 8), 4)])
def test_lowering_on_a_grid_meets_the_definition(
    grid: tuple[int, int], side: int, protect: int, pool: str
) -> None:
    a = canonical(grid[0] * grid[1] + protect, dtype=torch.float64)
    form = Nystrom(side * side, protect, f"{grid[0]}x{grid[1]}", pool)
    torch.testing.assert_close(emitted(form, a), defined(form, a), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("pool", ["stride", "mean"])
def test_a_padded_sequence_gives_what_it_gives_alone(pool: str) -> None:
    a, form = padded(100, dtype=torch.float64), Nystrom(5, 0, pool=pool)
    shape = {**a.shape, "B": Size.of(1), "I": Size.of(97), "J": Size.of(97)}
    alone = replace(a, q=a.q[1:, :, 3:], k=a.k[1:, :, 3:], v=a.v[1:, :, 3:], bias=None, shape=shape)
    torch.testing.assert_close(emitted(form, a)[1:, :, 3:], emitted(form, alone), rtol=1e-8, atol=1e-8)


def test_a_query_whose_keys_are_all_hidden_gives_zero() -> None:
    a, form = padded(9), Nystrom(2, 1)
    a.bias[0] = -math.inf  # type: ignore[index]
    for found in (emitted(form, a), defined(form, a)):
        assert (found[0] == 0).all() and found.isfinite().all() and (found[1] != 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_other_precisions(dtype: torch.dtype) -> None:
    for a, form in (
        (padded(40, dtype=dtype), Nystrom(3, 2)),
        (canonical(26, dtype=dtype), Nystrom(4, 1, "auto", "mean")),
    ):
        found = emitted(form, a)
        assert found.dtype == dtype
        wide = replace(a, q=a.q.double(), k=a.k.double(), v=a.v.double())
        # the inverse multiplies the rounding of what it is computed from
        error = (found.double() - defined(form, wide)).abs().max()
        assert error <= 32 * torch.finfo(dtype).eps * defined(form, wide).abs().max()


def test_gradients_are_finite_and_right() -> None:
    for a, form in (
        (padded(20, dtype=torch.float64), Nystrom(3, 1)),
        (canonical(17, dtype=torch.float64), Nystrom(4, 1, "4x4", "mean")),
    ):
        inputs = [x.requires_grad_() for x in (a.q, a.k, a.v)]
        found = torch.autograd.grad(emitted(form, a).square().sum(), inputs)
        want = torch.autograd.grad(defined(form, a).square().sum(), inputs)
        for got, right in zip(found, want, strict=True):
            assert got.isfinite().all()
            torch.testing.assert_close(got, right, rtol=1e-7, atol=1e-7)


EXACT = {
    "every token is a landmark": (Nystrom(16), {}, True),
    "all but one": (Nystrom(15), {}, False),
    "all but the protected one": (Nystrom(15, 1), {}, False),
    "all are protected": (Nystrom(4, 16), {}, True),
    "one query": (Nystrom(4), {"queries": 1}, True),
    "one key": (Nystrom(4), {"keys": 1}, True),
    "unknown length": (Nystrom(400), {"queries": "n", "keys": "n"}, False),
    "causal, every token is a landmark": (Nystrom(16), {"facts": Facts(band=CAUSAL)}, True),
}


@pytest.mark.parametrize(("form", "changes", "exact"), EXACT.values(), ids=list(EXACT))
def test_exactness_is_proved(form: Nystrom, changes: dict[str, Any], exact: bool) -> None:
    here = site(**changes)
    assert form.fidelity(here) is (Fidelity.EXACT if exact else Fidelity.TRAINING_FREE)
    assert form.why_not(here) is None
    if exact:
        assert form.cost(here) == Softmax().cost(here)


def test_all_tokens_as_landmarks_are_the_site_up_to_the_pseudo_inverse() -> None:
    a = canonical(8, dtype=torch.float64)
    want = softmax_attention(operands(a))
    exact = nystrom_attention(operands(a), count=8, iterations=None)
    torch.testing.assert_close(exact, want, rtol=1e-9, atol=1e-9)
    errors = [float((defined(Nystrom(8, iterations=n), a) - want).abs().max()) for n in (2, 6, 20)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-6
    torch.testing.assert_close(emitted(Nystrom(8), a), want)


def test_protected_queries_are_exact() -> None:
    a = padded(12, dtype=torch.float64)
    want = Softmax().emit(emitter_of(a), a)
    for protect in (1, 4, 12):
        found = emitted(Nystrom(2, protect), a)
        torch.testing.assert_close(found[:, :, :protect], want[:, :, :protect])


REFUSED = {
    "causal": (Nystrom(4), {"facts": Facts(band=CAUSAL, only_band=True)}, "causal or windowed"),
    "bias": (Nystrom(4), {"facts": Facts(bias=True)}, "(bias) that is not proved to be the same"),
    "cross-attention": (Nystrom(4), {"keys": 9}, "the same tokens among both"),
    "two dynamic lengths": (Nystrom(4), {"queries": "n", "keys": "m"}, "the same tokens among both"),
    "too few tokens": (Nystrom(16, 1), {}, "15 tokens for 16 landmarks"),
    "padding on a grid": (Nystrom(4, 0, "auto"), {"facts": PADDED}, "a grid needs all"),
    "not a square": (Nystrom(4, 1, "auto"), {}, "15 after 1 protected ones, which is not a square"),
}


@pytest.mark.parametrize(("form", "changes", "words"), REFUSED.values(), ids=list(REFUSED))
def test_refusals_say_why(form: Nystrom, changes: dict[str, Any], words: str) -> None:
    assert words in (form.why_not(site(**changes)) or "")


@pytest.mark.parametrize(
    "wrong",
    [{"landmarks": 0}, {"landmarks": 3, "pool": "max"}, {"landmarks": 3, "iterations": 0}],
    ids=str,
)
def test_parameters_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Nystrom(**wrong)


def test_it_reads_back_what_it_prints() -> None:
    for form in (Nystrom(5), Nystrom(100, 1, "auto", "mean", 8)):
        assert Nystrom.parse(str(form).partition(":")[2].split(",")) == form


class Counting(TorchEmitter):
    """Counts the multiplications of matrices of landmarks, and the scores."""

    scores = 0
    products = 0

    def attention(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        self.scores += q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
        return super().attention(q, k, v, **options)

    def matmul(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        self.products += a.shape[-2] * a.shape[-1] * b.shape[-1]
        return super().matmul(a, b)


@pytest.mark.parametrize("form", [Nystrom(49, 1), Nystrom(49, 1, "auto", iterations=3)], ids=str)
def test_cost_counts_what_is_computed(form: Nystrom) -> None:
    a = canonical(1025, batch=1, heads=1, groups=1)
    e = emitter_of(a, Counting)
    assert isinstance(e, Counting)
    form.emit(e, a)
    here = site(heads=Size.of(1), queries=1025, keys=1025, qk_dim=Size.of(8), v_dim=Size.of(6))
    assert int(form.cost(here).flops) == 2 * (e.scores * (8 + 6) + e.products)
    assert int(form.cost(here).flops) < 0.7 * int(Softmax().cost(here).flops)
