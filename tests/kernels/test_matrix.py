"""Every kernel of attention by every property, and every form by its kernels for the target ``triton``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import rewriter
from rewriter.operators import OPERATORS
from rewriter.passes import CATALOG
from rewriter.selectors import parse_apply
from tests.kernels.launched import assert_near, poisoned

pytest.importorskip("triton")

Operands = tuple[Tensor | None, ...]


@pytest.fixture(autouse=True)
def compiled_apart() -> None:
    """Let no test see what another one has compiled: there is a limit."""
    torch.compiler.reset()


@dataclass(frozen=True)
class Sample:
    """Settings of one call, and which operands it has besides q, k and v: ``bias``, ``sink``, ``decay``."""

    settings: dict[str, Any]
    more: tuple[str, ...] = ("bias", "sink")
    trained: bool = True


LINE = {"stride": [1], "dilation": [1], "phase": [0]}
CAUSAL = {"scale": 0.3, "right": 0, "empty_row": "zero"}

SAMPLES = {
    "softmax": Sample({**CAUSAL, "softcap": 5.0}),
    "window": Sample({**CAUSAL, **LINE, "window": [5], "sinks": 1}),
    "clipped": Sample({**CAUSAL, "zeta": 1.1, "gamma": -0.03}),
    "gathered": Sample({"scale": 0.3}, ("bias",), trained=False),
    "pooled": Sample(
        {"scale": 0.3, "right": 0, "window": [4], "stride": [2], "pool": [2], "sinks": 1}, trained=False
    ),
    "scan": Sample({}, ("decay",)),
}
"""A kernel that is not trained has its gradient by formulas only."""


def operands(name: str, tokens: int, dtype: torch.dtype = torch.float32, batch: int = 2) -> Operands:
    g = torch.Generator().manual_seed(tokens)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g).to(dtype)

    made: dict[str, Callable[[], Tensor]] = {
        "bias": lambda: draw(batch, 1, 1, tokens),
        "sink": lambda: draw(1, 2, 1, 1),
        "decay": lambda: -draw(batch, 1, tokens, 1).abs(),
    }
    heads = [draw(batch, h, tokens, width) for h, width in ((2, 8), (1, 8), (1, 6))]
    return (*heads, *(made[more]() for more in SAMPLES[name].more))


def launch(name: str, given: Operands) -> Tensor:
    with poisoned():
        found = import_module(f"rewriter.kernels.{name}.fused_triton").forward(
            *given, **SAMPLES[name].settings
        )
    result: Tensor = found[0]
    return result


def defined(name: str, given: Operands) -> Tensor:
    """Return the definition, in float64: what a kernel rounds is compared, not what another one does."""
    wide = [None if x is None else x.double() for x in given]
    found: Tensor = import_module(f"rewriter.kernels.{name}.definition").by_settings(
        *wide, **SAMPLES[name].settings
    )
    return found


def operator(name: str, given: Operands) -> Tensor:
    result: Tensor = getattr(torch.ops.rewriter, name)(*given, **SAMPLES[name].settings)[0]
    return result


def test_every_kernel_of_attention_is_here() -> None:
    of_attention = {
        name
        for name in OPERATORS
        if [a.name for a in getattr(torch.ops.rewriter, name).default._schema.arguments[:3]]
        == ["q", "k", "v"]
    }
    assert of_attention == set(SAMPLES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 19])
@pytest.mark.parametrize("name", SAMPLES)
def test_the_kernel_meets_its_definition_at_odd_lengths(name: str, tokens: int, dtype: torch.dtype) -> None:
    given = operands(name, tokens, dtype)
    out = launch(name, given)
    assert out.dtype == dtype
    assert_near(out, defined(name, given), dtype)


@pytest.mark.parametrize("name", SAMPLES)
def test_operands_may_lie_anywhere_with_nan_around_them(name: str) -> None:
    given = operands(name, 19)

    def apart(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        buffer = torch.full([n + 2 for n in x.shape[::-1]], math.nan)
        view = buffer.permute(3, 2, 1, 0)[1:-1, 1:-1, 1:-1, 1:-1]
        view.copy_(x)
        return view

    assert_near(launch(name, tuple(map(apart, given))), defined(name, given), torch.float32)


@pytest.mark.parametrize("name", sorted(SAMPLES.keys() - {"scan"}))
def test_rows_that_see_nothing_give_zero(name: str) -> None:
    given = list(operands(name, 19))
    assert given[3] is not None
    given[3][0] = -math.inf
    given[4:] = [None] * len(given[4:])  # a sink would be seen
    out = launch(name, tuple(given))
    assert (out[0] == 0).all()
    assert_near(out[1:], defined(name, tuple(given))[1:], torch.float32)
    computed = operator(name, tuple(given))
    assert_near(computed, out, torch.float32)


@pytest.mark.parametrize("name", SAMPLES)
def test_gradients_of_kernel_and_operator_meet_automatic_differentiation(name: str) -> None:
    given = operands(name, 19)
    wide = [None if x is None else x.double().requires_grad_() for x in given]
    present = [x for x in wide if x is not None]
    result = import_module(f"rewriter.kernels.{name}.definition").by_settings(*wide, **SAMPLES[name].settings)
    grad = torch.randn(result.shape, generator=torch.Generator().manual_seed(1))
    want = torch.autograd.grad(result, present, grad.double())
    leaves = [None if x is None else x.clone().requires_grad_() for x in given]
    out = operator(name, tuple(leaves))
    by_formula = torch.autograd.grad(out, [x for x in leaves if x is not None], grad)
    found: list[Sequence[Tensor | None]] = [by_formula]
    module = import_module(f"rewriter.kernels.{name}.fused_triton")
    assert hasattr(module, "backward") == SAMPLES[name].trained
    if SAMPLES[name].trained:
        with poisoned():
            kept = module.forward(*given, **SAMPLES[name].settings)
            wanted = [x is not None for x in given]
            found.append(module.backward(grad, *kept, *given, wanted=wanted, **SAMPLES[name].settings))
    for gradients in found:
        for got, right in zip(gradients, want, strict=True):
            assert got is not None
            # the gradient of a decay is a difference of sums over all steps
            bound = 1e-4 if name == "scan" else 2e-5
            torch.testing.assert_close(
                got.double(), right, rtol=0, atol=bound * max(1.0, float(right.abs().max()))
            )


class Call(torch.nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, *given: Tensor) -> Tensor:
        return operator(self.name, given)


@pytest.mark.parametrize("name", SAMPLES)
def test_the_operator_is_fake_computed_exported_and_compiled(name: str) -> None:
    given = [x for x in operands(name, 19) if x is not None]
    leaves = tuple(x.clone().requires_grad_() for x in given)
    call = getattr(torch.ops.rewriter, name).default
    torch.library.opcheck(
        call,
        leaves,
        SAMPLES[name].settings,
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
    want = operator(name, tuple(given))
    assert_near(want, defined(name, tuple(given)), torch.float32)
    exported = torch.export.export(Call(name), tuple(given)).module()
    assert torch.equal(exported(*given), want)
    compiled: Any = torch.compile(Call(name), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*given), want)
    compiled(*leaves).sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in leaves)


class Dense(torch.nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class Causal(torch.nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Products(torch.nn.Module):
    """Causal attention without a softmax."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(2, 3)).tril() @ v


FORMS: dict[str, tuple[str, type[torch.nn.Module], set[str]]] = {
    "softmax": ("softmax", Dense, {"softmax"}),
    "window": ("window:window=4,sinks=1", Causal, {"window"}),
    "pooled": ("pooled:window=8,pool=2", Causal, {"pooled"}),
    "clipped": ("clipped:gamma=-0.03", Dense, {"clipped"}),
    "gated": ("gated:bias=1", Causal, {"softmax"}),
    "agent": ("agent:agents=4,pool=cluster", Dense, {"gathered", "softmax"}),
    "nystrom": ("nystrom:landmarks=4", Dense, {"gathered", "softmax"}),
    "merge": ("merge:ratio=0.25", Dense, {"nearest", "softmax"}),
    "linear": ("linear:feature_map=elu", Causal, {"scan"}),
    "flow": ("flow", Causal, {"scan"}),
    "reassociated": ("reassociated", Products, {"scan"}),
}
"""Form, site, and the kernels that it calls; without a causal mask the last three are products only."""


def test_every_form_is_here() -> None:
    assert set(FORMS) == set(CATALOG)


@pytest.mark.parametrize("name", FORMS)
def test_a_form_calls_its_kernels_compiles_and_exports(name: str) -> None:
    text, module, kernels = FORMS[name]
    tokens = 1000 if name == "reassociated" else 65
    given = tuple(torch.randn(3, 1, 2, tokens, 8, generator=torch.Generator().manual_seed(0)))
    original = rewriter.trace(module().eval(), tuple(x.clone() for x in given))
    new, report = rewriter.rewrite(original, [parse_apply(text)], target="triton")
    assert report.committed, report.refused
    called = {
        str(node.op).replace("::", ".").split(".")[1] for node in new.graph.nodes if "rewriter" in node.op
    }
    assert called == kernels
    plain, _ = rewriter.rewrite(original, [parse_apply(text)], target="torch")
    want = plain.module()(*given)
    rewritten: Any = new.module()
    bound = 2e-5 * max(1.0, float(want.abs().max()))
    compiled: Any = torch.compile(rewritten, backend="aot_eager")
    again = torch.export.export(rewritten, given).module()
    for run in (rewritten, compiled, again):
        torch.testing.assert_close(run(*given), want, rtol=0, atol=bound)
