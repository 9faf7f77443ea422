"""The calls of `benchmarks.kernels` compute what they are compared for; how long they take needs a GPU."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks import kernels
from benchmarks.kernels import CASES, SCALE, Case

WITH_NATTEN = [case for case in CASES if case.operator == "window"]


def tokens_of(case: Case) -> int:
    return 1 + 8 * 8 if "grid" in case.settings(65) else 40


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernels_compute_attention_of_what_a_case_sees(case: Case) -> None:
    tokens = tokens_of(case)
    q, k, v = kernels.operands(case, tokens, "cpu", torch.float32, backward=False)
    found = kernels.kernel(case, tokens)(q, k, v)
    k, v = (x.repeat_interleave(case.heads // case.groups, 1) for x in (k, v))
    if case.operator == "scan":
        want = (SCALE * q @ k.transpose(2, 3)).tril() @ v
    elif case.operator == "clipped":
        want = torch.clamp(1.001 * (SCALE * q @ k.transpose(2, 3)).softmax(-1) - 0.001, 0, 1) @ v
    elif case.operator == "pooled":  # all keys of a grid of 8 × 8 are near
        want = F.scaled_dot_product_attention(q, k, v, scale=SCALE)
    else:
        want = F.scaled_dot_product_attention(q, k, v, attn_mask=case.sees(tokens), scale=SCALE)
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", WITH_NATTEN, ids=lambda case: case.name)
def test_natten_is_given_the_tokens_of_the_grid(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def neighbourhoods(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **settings: Any) -> torch.Tensor:
        seen.update(settings, shapes=[tuple(x.shape) for x in (q, k, v)])
        return v

    module = ModuleType("natten")
    vars(module).update(na1d=neighbourhoods, na2d=neighbourhoods)
    monkeypatch.setitem(sys.modules, "natten", module)
    monkeypatch.setattr(kernels, "find_spec", lambda name: object())
    tokens = tokens_of(case)
    call = kernels.natten(case, tokens)
    assert call is not None
    q, k, v = kernels.operands(case, tokens, "cpu", torch.float32, backward=False)
    out = call(q, k, v)
    grid = [8, 8] if "grid" in case.settings(tokens) else [tokens]
    assert seen["shapes"] == [(1, *grid, case.heads, 64)] * 3
    assert len(seen["kernel_size"]) == len(seen["is_causal"]) == len(grid)
    kept = v.repeat_interleave(case.heads // case.groups, 1)[:, :, tokens - out.shape[2] :]
    torch.testing.assert_close(out, kept, rtol=0, atol=0)


def test_sums_are_given_to_fla_with_heads_behind_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("fla.ops.simple_gla")

    def sums(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> tuple[torch.Tensor, None]:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return ((scale * q @ k.transpose(2, 3)).tril() @ v).transpose(1, 2), None

    vars(module).update(chunk_simple_gla=sums)
    for name in ("fla", "fla.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(kernels, "find_spec", lambda name: object())
    (case,) = (case for case in CASES if case.operator == "scan")
    operands = kernels.operands(case, 40, "cpu", torch.float32, backward=False)
    call = kernels.fla(case, 40)
    assert call is not None
    torch.testing.assert_close(call(*operands), kernels.kernel(case, 40)(*operands), rtol=1e-4, atol=1e-4)
    assert [kernels.fla(other, 40) for other in WITH_NATTEN] == [None] * len(WITH_NATTEN)
