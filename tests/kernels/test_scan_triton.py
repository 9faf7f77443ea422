from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from rewriter.kernels.scan.definition import scan
from rewriter.kernels.scan.gradient import scan_gradient
from tests.kernels.launched import assert_near, poisoned
from tests.kernels.test_scan import DECAYS, operands

pytest.importorskip("triton")

LENGTHS = [(1, 1, 0), (16, 16, 0), (17, 17, 0), (19, 40, 20), (5, 40, 3)]


def run(x: Sequence[Tensor | None], offset: int = 0) -> Tensor:
    from rewriter.kernels.scan.fused_triton import forward

    with poisoned():
        out, _ = forward(*x, offset=offset)  # type: ignore[arg-type]
    return out


def defined(x: Sequence[Tensor | None], offset: int = 0) -> Tensor:
    """Return the sums in float64: differences of long sums of log-decays round in single precision."""
    q, k, v, fade = (None if t is None else t.double() for t in x)
    assert q is not None and k is not None and v is not None
    return scan(q, k, v, fade, offset)


def in_padded_buffer(x: Tensor | None) -> Tensor | None:
    """Return the same as a view of a larger token-major buffer that is NaN everywhere else."""
    if x is None:
        return None
    B, H, tokens, width = x.shape
    buffer = torch.full((B, tokens + 5, H + 1, width + 3), torch.nan, dtype=x.dtype)
    view = buffer.transpose(1, 2)[:, 1:, 2 : 2 + tokens, 1 : 1 + width]
    view.copy_(x)
    return view


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("queries", "keys", "offset"), LENGTHS)
def test_the_kernel_meets_the_definition(
    queries: int, keys: int, offset: int, decay: str, dtype: torch.dtype
) -> None:
    x = operands(queries, keys, decay, dtype)
    out = run(x, offset)
    assert out.dtype == dtype
    assert_near(out, defined(x, offset), dtype)


@pytest.mark.parametrize("decay", DECAYS)
def test_operands_lie_anywhere(decay: str) -> None:
    x = operands(19, 40, decay, torch.float32)
    assert_near(run([in_padded_buffer(t) for t in x], 20), defined(x, 20), torch.float32)


@pytest.mark.parametrize("decay", DECAYS)
def test_a_decay_of_any_strength_is_finite(decay: str) -> None:
    x = operands(40, 40, decay, torch.float32, strength=300.0)
    out = run(x)
    assert out.isfinite().all()
    assert_near(out, defined(x), torch.float32)


def test_wide_heads_take_several_blocks() -> None:
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 20, 40, generator=g)
    v = torch.randn(1, 1, 20, 100, generator=g)
    for fade in (None, -torch.rand(1, 1, 20, 40, generator=g)):
        assert_near(run((q, k, v, fade)), defined((q, k, v, fade)), torch.float32)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("queries", "keys", "offset"), [(1, 1, 0), (19, 19, 0), (19, 40, 20)])
def test_gradients_of_the_kernel(queries: int, keys: int, offset: int, decay: str) -> None:
    from rewriter.kernels.scan.fused_triton import backward

    x = operands(queries, keys, decay, torch.float32)
    grad = torch.randn(2, 4, queries, 3, generator=torch.Generator().manual_seed(1))
    with poisoned():
        found = backward(grad, grad, grad, *x, offset=offset)
    wide = [None if t is None else t.double() for t in x]
    q, k, v, fade = wide
    assert q is not None and k is not None and v is not None
    want = scan_gradient(grad.double(), q, k, v, fade, offset, scan)
    for got, expected in zip(found[:3], want[:3], strict=True):
        assert_near(got, expected, torch.float32)
    if fade is None:
        assert found[3] is want[3] is None
    else:  # a difference of two sums, judged by their size
        assert found[3] is not None and want[3] is not None
        # a number for all steps has part in what passes each of them
        times = torch.arange(1.0, keys + 1)[:, None] if decay == "per head" else torch.ones(keys, 1)
        passing = (times[offset : offset + queries] * q * want[0]).abs().sum()
        passing += (times * k * want[1]).abs().sum()
        bound = float(passing) * torch.finfo(torch.float32).eps
        torch.testing.assert_close(found[3].double(), want[3], rtol=0, atol=bound)


def test_nothing_in_nothing_out() -> None:
    x = operands(0, 4, "none", torch.float32)
    assert run(x, 4).shape == (2, 4, 0, 3)
