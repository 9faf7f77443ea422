from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rewriter.kernels.linear.form import Linear
from rewriter.kernels.scan.definition import scan, scan_in_chunks, scan_step
from rewriter.kernels.scan.gradient import scan_gradient
from rewriter.lower.triton_emitter import TritonEmitter
from tests.kernels.operands import CAUSAL, canonical, emitter_of
from tests.kernels.operands import operands as of_form

DECAYS = {"none": None, "per head": (1, 2, 1, 1), "per step": (2, 2, -1, 1), "per feature": (2, 2, -1, 5)}
LENGTHS = [(1, 1, 0), (9, 9, 0), (4, 9, 5), (4, 9, 2), (17, 17, 0)]


def operands(
    queries: int, keys: int, decay: str, dtype: torch.dtype = torch.float64, strength: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return q, k, v and a log-decay: two heads of keys, read by two heads of queries each."""
    g = torch.Generator().manual_seed(queries * 31 + keys)
    q = torch.randn(2, 4, queries, 5, generator=g, dtype=torch.float64)
    k = torch.randn(2, 2, keys, 5, generator=g, dtype=torch.float64)
    v = torch.randn(2, 2, keys, 3, generator=g, dtype=torch.float64)
    shape = DECAYS[decay]
    fade = None
    if shape is not None:
        sizes = [keys if n == -1 else n for n in shape]
        fade = -strength * torch.rand(sizes, generator=g, dtype=torch.float64)
    return q.to(dtype), k.to(dtype), v.to(dtype), None if fade is None else fade.to(dtype)


def by_hand(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, offset: int) -> Tensor:
    """Return the sums, a number at a time."""
    B, H, queries, features = q.shape
    fade = torch.zeros(1) if log_decay is None else log_decay
    fade = fade.expand(B, k.shape[1], k.shape[2], features)
    out = torch.zeros(B, H, queries, v.shape[3], dtype=torch.float64)
    for b, h, i in itertools.product(range(B), range(H), range(queries)):
        g = h // (H // k.shape[1])
        for j in range(min(i + offset + 1, k.shape[2])):
            weight = 0.0
            for f in range(features):
                between = float(fade[b, g, j + 1 : i + offset + 1, f].sum())
                weight += float(q[b, h, i, f] * k[b, g, j, f]) * math.exp(between)
            out[b, h, i] += weight * v[b, g, j]
    return out


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("queries", "keys", "offset"), LENGTHS)
def test_definition_is_sums_by_hand(queries: int, keys: int, offset: int, decay: str) -> None:
    x = operands(queries, keys, decay)
    torch.testing.assert_close(scan(*x, offset), by_hand(*x, offset), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("queries", "keys", "offset"), LENGTHS)
def test_parallel_is_chunked_is_recurrent(queries: int, keys: int, offset: int, decay: str) -> None:
    q, k, v, fade = operands(queries, keys, decay)
    parallel = scan(q, k, v, fade, offset)
    for chunk in (1, 4, 8, 64):
        torch.testing.assert_close(scan_in_chunks(q, k, v, fade, offset, chunk=chunk), parallel)
    state, steps = torch.zeros(2, 2, 5, 3, dtype=torch.float64), []
    padded = torch.cat([torch.zeros(2, 4, offset, 5, dtype=torch.float64), q], 2)
    whole = None if fade is None else fade.expand(2, 2, keys, fade.shape[3])
    for t in range(offset + queries):
        one = slice(t, t + 1)
        now = None if whole is None else whole[:, :, one]
        out, state = scan_step(state, padded[:, :, one], k[:, :, one], v[:, :, one], now)
        steps.append(out)
    torch.testing.assert_close(torch.cat(steps, 2)[:, :, offset:], parallel)


def test_both_directions_less_the_diagonal_see_everything() -> None:
    q, k, v, _ = operands(9, 9, "none")
    ahead = scan(q.flip(2), k.flip(2), v.flip(2)).flip(2)
    k, v = (x.repeat_interleave(2, 1) for x in (k, v))
    own = (q * k).sum(-1, keepdim=True) * v
    torch.testing.assert_close(scan(q, k, v) + ahead - own, q @ (k.mT @ v))


@pytest.mark.parametrize("decay", ["per step", "per feature"])
def test_a_step_that_forgets_everything_starts_again(decay: str) -> None:
    q, k, v, fade = operands(9, 9, decay)
    assert fade is not None
    fade[:, :, 4] = -1e4
    for found in (scan(q, k, v, fade), scan_in_chunks(q, k, v, fade, chunk=3)):
        torch.testing.assert_close(
            found[:, :, 4:], scan(q[:, :, 4:], k[:, :, 4:], v[:, :, 4:], fade[:, :, 4:])
        )
        assert found.isfinite().all()


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("queries", "keys", "offset"), LENGTHS)
def test_gradients_are_those_of_the_definition(queries: int, keys: int, offset: int, decay: str) -> None:
    x = operands(queries, keys, decay)
    given = [t.requires_grad_() for t in x if t is not None]
    out = scan(*x, offset)
    grad = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(0))
    want = torch.autograd.grad(out, given, grad)
    with torch.no_grad():
        found = scan_gradient(grad, *x, offset, scan_in_chunks)
    for got, expected in zip(found, want, strict=False):
        torch.testing.assert_close(got, expected)
    assert (found[3] is None) == (decay == "none")


@pytest.mark.parametrize("decay", DECAYS)
def test_the_operator_is_sound(decay: str) -> None:
    import rewriter.operators  # noqa: F401

    x = operands(4, 9, decay, torch.float32)
    given = tuple(None if t is None else t.requires_grad_() for t in x)
    torch.library.opcheck(torch.ops.rewriter.scan.default, given, {"offset": 5})
    out, _ = torch.ops.rewriter.scan(*given, offset=5)
    torch.testing.assert_close(out, scan(*x, 5))


class Listening(TritonEmitter):
    """Counts the calls of the operator."""

    calls = 0

    def kernel(self, name: str, *args: Any) -> Tensor:
        assert name == "scan"
        self.calls += 1
        return super().kernel(name, *args)


def test_causal_sums_become_the_operator() -> None:
    for feature_map, bias in itertools.product(("elu", "taylor2"), (None, "keys")):
        a, form = canonical(300, bias=bias, band=CAUSAL, dynamic=True), Linear(feature_map)
        e = emitter_of(a, Listening)
        assert isinstance(e, Listening)
        found = form.lower(e, a)
        assert e.calls == (1 if feature_map == "elu" else 0)
        torch.testing.assert_close(found, form.definition(of_form(a)), rtol=1e-4, atol=1e-5)
